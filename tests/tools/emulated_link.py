"""A network link between two namespaces, in user space: rate, delay, loss and a bounded queue.

Each end is a TUN device. A process for each direction reads what one end sends and writes it to the
other when the link would have delivered it, so nothing of the kernel is needed but /dev/net/tun (netem
is missing from many kernels). Segmentation offload stays on, as on a real network card: what crosses
this process is up to 64 KiB at once, yet time is charged and losses are drawn for each of its packets
of the link's MTU, which netem does not do.
"""

import collections
import contextlib
import ctypes
import fcntl
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from mmap import mmap

MTU = 1500
# What Ethernet adds to a packet: preamble, header, checksum and the gap before the next.
FRAMING = 38
# The largest packet the kernel hands over, and its offload header.
READ = 65536 + 64

TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
# Checksums, and TCP and UDP over IPv4 in segments.
OFFLOADS = 0x01 | 0x02 | 0x20 | 0x40
OFFLOAD = struct.Struct("=BBHHHH")  # flags, kind, header length, segment size, checksum's start and place
NEEDS_CHECKSUM = 1
PLAIN, UDP_SEGMENTS = 0, 5

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1
# Memory that is given back to the kernel costs a page fault for every 4 KiB when it is taken again.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def checked(result):
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def die_with_parent():
    """For a child: ends when its parent does, however that ends."""
    checked(LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0))


class Namespace:
    """A network namespace without a name: it goes when the last process that has it does."""

    def __init__(self):
        home = os.open("/proc/self/ns/net", os.O_RDONLY)
        try:
            checked(LIBC.unshare(CLONE_NEWNET))
            self.file = os.open("/proc/self/ns/net", os.O_RDONLY)
        finally:
            checked(LIBC.setns(home, CLONE_NEWNET))
            os.close(home)

    def path(self):
        return f"/proc/{os.getpid()}/fd/{self.file}"

    def enter(self):
        """For a child before it starts its program."""
        checked(LIBC.setns(self.file, CLONE_NEWNET))
        die_with_parent()

    @contextlib.contextmanager
    def inside(self):
        """What is opened meanwhile is of this namespace."""
        home = os.open("/proc/self/ns/net", os.O_RDONLY)
        try:
            checked(LIBC.setns(self.file, CLONE_NEWNET))
            yield
        finally:
            checked(LIBC.setns(home, CLONE_NEWNET))
            os.close(home)

    def tun(self, name):
        """A TUN device in it, as the file that its packets are read from and written to."""
        with self.inside():
            device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
            fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI | IFF_VNET_HDR))
            fcntl.ioctl(device, TUNSETVNETHDRSZ, struct.pack("i", OFFLOAD.size))
            fcntl.ioctl(device, TUNSETOFFLOAD, OFFLOADS)
            return device


class Setting:
    """A link's rate in bits a second (None: no limit), round trip in seconds, and loss each way."""

    def __init__(self, rate, round_trip, loss):
        self.rate, self.round_trip, self.loss = rate, round_trip, loss
        # Bytes that wait for the link at most. Four times what is under way, as senders of several streams
        # fill more than a link; at least 4 MiB, as a burst that a card's own queue would hold back (which
        # no TUN can) must not be lost: losses are to be those asked for.
        self.queue = max(4 * int((rate or 0) * round_trip / 8), 4 << 20)

    def __str__(self):
        if self.rate is None and self.round_trip == 0 and self.loss == 0:
            return "unlimited"
        rate = "unlimited" if self.rate is None else f"{self.rate / 1e9:g} Gbit/s"
        return f"{rate}, {self.round_trip * 1e3:g} ms" + (f", {self.loss:.2%} loss" if self.loss else "")


class Counters:
    """What a direction carried: shared with the process that carries it."""

    NAMES = ["wire_bytes", "packets", "lost", "overflowed"]

    def __init__(self):
        self.shared = memoryview(mmap(-1, 8 * len(self.NAMES))).cast("Q")

    def read(self):
        return dict(zip(self.NAMES, self.shared))


def parts(frame):
    """Of a frame: the lengths of its headers and of a segment's payload, and how many segments."""
    _, kind, _, size, start, _ = OFFLOAD.unpack_from(frame)
    if kind == PLAIN:
        return 0, 0, 1
    udp = kind & 0x7F == UDP_SEGMENTS
    headers = start + (8 if udp else (frame[OFFLOAD.size + start + 12] >> 4) * 4)
    return headers, size, max(1, -(-(len(frame) - OFFLOAD.size - headers) // size))


def summed(data):
    """The Internet checksum's sum, not yet complemented."""
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def run(frame, first, end):
    """The segments first..end of a frame of several, as a frame."""
    headers, size, count = parts(frame)
    flags, kind, length, _, start, place = OFFLOAD.unpack_from(frame)
    payload = frame[OFFLOAD.size + headers:][first * size:end * size]
    head = bytearray(frame[OFFLOAD.size:OFFLOAD.size + headers])
    struct.pack_into("!H", head, 2, headers + len(payload))
    struct.pack_into("!H", head, 10, 0)
    struct.pack_into("!H", head, 10, 0xFFFF ^ summed(bytes(head[:start])))
    inner = headers - start + len(payload)
    if kind & 0x7F == UDP_SEGMENTS:
        struct.pack_into("!H", head, start + 4, inner)
    else:
        number = struct.unpack_from("!I", head, start + 4)[0]
        struct.pack_into("!I", head, start + 4, (number + first * size) & 0xFFFFFFFF)
        if end < count:
            head[start + 13] &= ~0x09  # FIN and PSH belong to the last segment
        if first > 0:
            head[start + 13] &= ~0x80  # and CWR to the first
    # The kernel finishes the checksum: what it finds is that of addresses, protocol and length.
    pseudo = bytes(head[12:20]) + struct.pack("!HH", head[9], inner)
    struct.pack_into("!H", head, start + place, summed(pseudo))
    kind, size = (PLAIN, 0) if end - first == 1 else (kind, size)
    return OFFLOAD.pack(flags, kind, length, size, start, place) + head + payload


class Losses:
    """Draws which packets are lost, each with the same probability."""

    def __init__(self, probability, seed):
        self.probability, self.random = probability, random.Random(seed)
        self.left = self.gap()

    def gap(self):
        """How many packets arrive before the next is lost."""
        if self.probability == 0:
            return 1 << 62
        count = 0
        while self.random.random() >= self.probability:
            count += 1
        return count

    def of(self, count):
        """Which of the next `count` packets are lost."""
        lost, at = [], self.left
        while at < count:
            lost.append(at)
            at += 1 + self.gap()
        self.left = at - count
        return lost


def surviving(frame, lost, count):
    """What is left of a frame whose segments `lost` are lost, as frames."""
    if count == 1:
        return []
    edges = [-1, *lost, count]
    return [run(frame, before + 1, after) for before, after in zip(edges, edges[1:]) if after - before > 1]


def carry(source, sink, setting, counters, seed):
    """Carries packets from one TUN to another, for ever."""
    losses, delay = Losses(setting.loss, seed), setting.round_trip / 2
    per_byte = 8 / setting.rate if setting.rate else 0
    under_way, free, shared = collections.deque(), 0.0, counters.shared
    while True:
        now = time.monotonic()
        while under_way and under_way[0][0] <= now:
            deliver(sink, under_way.popleft()[1])
        try:
            frame = os.read(source, READ)
        except BlockingIOError:
            wait = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
            select.select([source], [], [], wait)
            continue
        headers, _, count = parts(frame)
        wire = len(frame) - OFFLOAD.size + (count - 1) * headers + count * FRAMING
        free = max(free, now)
        if per_byte and (free - now) / per_byte > setting.queue:
            shared[3] += count
            continue
        free += wire * per_byte
        shared[0] += wire
        shared[1] += count
        lost = losses.of(count)
        if lost:
            shared[2] += len(lost)
            under_way.extend((free + delay, left) for left in surviving(frame, lost, count))
        else:
            under_way.append((free + delay, frame))


def deliver(sink, frame):
    try:
        os.write(sink, frame)
    except OSError as error:
        # The far end's stack refuses a packet when it is out of memory or goes away: a loss like any other.
        if error.errno not in (5, 11, 12, 105):
            raise


class Link:
    """A link between two namespaces, as device `name` with the addresses `ends`; ends with `close`."""

    def __init__(self, namespaces, name, ends, setting):
        self.devices = [namespace.tun(name) for namespace in namespaces]
        self.counters = [Counters(), Counters()]
        for namespace, own, peer in zip(namespaces, ends, reversed(ends)):
            inside(namespace, f"link set dev {name} mtu {MTU} txqueuelen 10000 up")
            inside(namespace, f"addr add {own} peer {peer} dev {name}")
        self.processes = []
        for way, (source, sink) in enumerate([self.devices, self.devices[::-1]]):
            self.processes.append(start(lambda: carry(source, sink, setting, self.counters[way], seed=way + 1)))

    def read(self):
        """What each direction has carried so far."""
        return [counters.read() for counters in self.counters]

    def processor_seconds(self):
        """What carrying has taken of the machine's processors: real links take nothing."""
        ticks = 0
        for process in self.processes:
            with open(f"/proc/{process}/stat") as stat:
                fields = stat.read().rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def close(self):
        for process in self.processes:
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        for device in self.devices:
            os.close(device)


def inside(namespace, arguments):
    """Runs `ip` in a namespace."""
    done = subprocess.run(["ip", *arguments.split()], preexec_fn=namespace.enter, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"ip {arguments}: {done.stderr.strip()}")


def start(work):
    """Runs `work` in a process of its own, before everything else that wants the processor, as a link's
    hardware would; gives its number."""
    process = os.fork()
    if process:
        return process
    try:
        die_with_parent()
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        for kept in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            LIBC.mallopt(kept, 1 << 30)
        work()
    except BaseException as error:
        print(f"the emulated link ended: {error!r}", file=sys.stderr, flush=True)
    finally:
        os._exit(1)


def check():
    """Sends TCP and UDP, in segments, over a link that loses 5 %: what arrives is what was sent."""
    near, far = Namespace(), Namespace()
    ends, port, data = ["10.77.0.1", "10.77.0.2"], 5000, os.urandom(1 << 20)
    link = Link([near, far], "wire", ends, Setting(1e9, 1e-3, 0.05))
    with far.inside():
        listener, receiver = socket.create_server((ends[1], port)), socket.socket(type=socket.SOCK_DGRAM)
        receiver.bind((ends[1], port))
    with near.inside():
        stream, sender = socket.socket(), socket.socket(type=socket.SOCK_DGRAM)
    stream.connect((ends[1], port))
    writer = start(lambda: [stream.sendall(struct.pack("!I", number) + data) for number in range(32)])
    stream.close()
    arriving = listener.accept()[0].makefile("rb")
    for number in range(32):
        assert arriving.read(4 + len(data)) == struct.pack("!I", number) + data, f"value {number} over TCP is another"
    os.waitpid(writer, 0)
    before = link.read()[0]
    sender.connect((ends[1], port))
    sender.setsockopt(socket.IPPROTO_UDP, 103, 1200)  # UDP_SEGMENT
    receiver.setsockopt(socket.SOL_SOCKET, 33, 1 << 26)  # SO_RCVBUFFORCE
    receiver.settimeout(0.5)
    datagrams = [struct.pack("!I", number) + data[number:number + 1196] for number in range(10000)]
    for first in range(0, len(datagrams), 20):
        sender.send(b"".join(datagrams[first:first + 20]))
        time.sleep(0.0005)
    arrived = 0
    with contextlib.suppress(TimeoutError):
        while datagram := receiver.recv(65536):
            number = struct.unpack_from("!I", datagram)[0]
            assert datagram == datagrams[number], f"datagram {number} over UDP is another"
            arrived += 1
    after = link.read()[0]
    lost = after["lost"] - before["lost"]
    assert 300 < lost < 700 and arrived == len(datagrams) - lost, f"{arrived} datagrams arrived, {lost} were lost"
    print(f"32 MiB over TCP and {arrived} of {len(datagrams)} datagrams arrived as they were sent: {lost} were to be lost")
    link.close()


if __name__ == "__main__":
    check()
