#!/usr/bin/env bash
# Runs a program beside a real RDMA device on a machine that has none.
#
#   run-rxe.sh [--env NAME=VALUE]... PROGRAM [ARGUMENT]...    runs PROGRAM
#   run-rxe.sh [--env NAME=VALUE]... --sh CODE [PROGRAM]...   runs CODE with PROGRAMs in $PATH
#   run-rxe.sh --fetch                                        only fills the cache
#
# A stock Debian kernel is booted in QEMU, emulated in software, with the program, its libraries and
# rdma-core in an initramfs. Its driver rdma_rxe makes a RoCEv2 device of a dummy network interface;
# the program uses it through the genuine libibverbs. What it prints comes out here, and so does its
# exit code; 124 says that it ran too long, 125 that it could not be run, and why.
#
# The program finds RXE_DEV, RXE_PORT, RXE_IP, RXE_GID_INDEX and RXE_NETDEV in its environment, and
# ibv_devinfo, ibv_rc_pingpong and ib_write_bw in its $PATH. Set for this script, RXE_TIMEOUT is how
# many seconds it may take (300), and RXE_CACHE where the 150 MB that it downloads from Debian's
# archive stay. Nothing is installed.
set -euo pipefail

cache=${RXE_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/tessera-rxe}
timeout=${RXE_TIMEOUT:-300}
format=1 # of the cache: another one is filled anew
address=10.0.0.1 gid=0000:0000:0000:0000:0000:ffff:0a00:0001
libraries=usr/lib/x86_64-linux-gnu

fail() { echo "run-rxe: $*" >&2; exit 125; }

fetch_only='' code='' variables=()
while [ $# -gt 0 ]; do
    case $1 in
        --fetch) fetch_only=yes ;;
        --env) variables+=("$2"); shift ;;
        --sh) code=$2; shift ;;
        --*) fail "no option $1: see the comment at the head of $0" ;;
        *) break ;;
    esac
    shift
done
[ -n "$fetch_only$code" ] || [ $# -gt 0 ] || fail "nothing to run"

[ "$(uname -m)" = x86_64 ] || fail "it boots an x86_64 kernel with this machine's libraries, which are $(uname -m)"
need() {
    local tool
    for tool in "$@"; do command -v "$tool" >/dev/null || fail "no $tool on this machine"; done
}
need flock ldd timeout

# The kernel's modules in the order in which they are loaded. rxe asks the kernel for crc32 by name;
# nothing else says that it needs the two modules that provide it.
modules=(
    arch/x86/crypto/crc32-pclmul crypto/crc32_generic net/ipv4/udp_tunnel net/ipv6/ip6_udp_tunnel
    fs/configfs/configfs drivers/infiniband/core/ib_core drivers/infiniband/core/ib_uverbs
    drivers/infiniband/core/iw_cm drivers/infiniband/core/ib_cm drivers/infiniband/core/rdma_cm
    drivers/infiniband/core/rdma_ucm drivers/infiniband/sw/rxe/rdma_rxe drivers/net/dummy
)
packages=(
    busybox-static ibverbs-providers ibverbs-utils iproute2 libbsd0 libcap2 libibumad3 libibverbs1
    libmd0 libmnl0 libnl-3-200 libnl-route-3-200 libpci3 librdmacm1 perftest
)

# Fills the cache: kernel, modules, QEMU and the guest's programs, unpacked.
fetch() {
    local new kernel release qemu=() deb module files start
    need apt-cache apt-get dpkg-deb tar xz
    new=$(mktemp -d "$cache/new.XXXXXX")
    trap 'rm -rf "$new"' EXIT
    kernel=$(apt-cache depends linux-image-amd64 2>/dev/null | awk '/Depends: linux-image-/ { print $2; exit }')
    if [ -z "$kernel" ]; then
        apt-get update -qq || fail "the package lists cannot be updated (not root, or no network)"
        kernel=$(apt-cache depends linux-image-amd64 2>/dev/null | awk '/Depends: linux-image-/ { print $2; exit }')
    fi
    [ -n "$kernel" ] || fail "the package lists have no linux-image-amd64: it needs Debian's archive"
    release=${kernel#linux-image-}
    files=("${modules[@]/#/./lib/modules/$release/kernel/}")
    if ! command -v qemu-system-x86_64 >/dev/null; then
        # Simulated only: what of QEMU is not installed yet.
        mapfile -t qemu < <(apt-get install -s --no-install-recommends qemu-system-x86 2>/dev/null |
            awk '/^Inst/ { print $2 }' | sort -u)
        [ ${#qemu[@]} -gt 0 ] || fail "no qemu-system-x86_64 on this machine and no package qemu-system-x86"
    fi
    echo "run-rxe: downloading $kernel, rdma-core${qemu:+ and qemu} to $cache" >&2
    mkdir "$new/debs" "$new/system" "$new/modules"
    (cd "$new/debs" && apt-get -qq -o APT::Sandbox::User=root download \
        "$kernel" "${packages[@]}" "${qemu[@]}") >&2 || fail "the packages cannot be downloaded"
    for deb in "$new"/debs/*.deb; do
        case $deb in
            */linux-image-*) # 400 MB, of which little is needed
                dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$new" "./boot/vmlinuz-$release" \
                    "${files[@]/%/.ko}" ;;
            *) dpkg-deb -x "$deb" "$new/system" ;;
        esac
    done
    for module in "${modules[@]}"; do
        mv "$new/lib/modules/$release/kernel/$module.ko" "$new/modules/"
    done
    # The kernel proper, which QEMU can enter at once: to have it unpack itself takes 9 s.
    start=$(LC_ALL=C grep -aboP '\xFD7zXZ\x00' "$new/boot/vmlinuz-$release" | head -1 | cut -d: -f1)
    tail -c +$((start + 1)) "$new/boot/vmlinuz-$release" | xz -dc --single-stream >"$new/kernel" 2>/dev/null || true
    [ "$(head -c 4 "$new/kernel" | tail -c 3)" = ELF ] || fail "the kernel $release is not packed with xz"
    rm -rf "${new:?}"/{debs,boot,lib} "$cache/guest"
    echo $format >"$new/format"
    mv "$new" "$cache/guest"
    trap - EXIT
}

mkdir -p "$cache" || fail "$cache cannot be made: set RXE_CACHE"
exec 9>"$cache/lock"
flock 9
[ "$(cat "$cache/guest/format" 2>/dev/null)" = $format ] || fetch
exec 9>&-
[ -z "$fetch_only" ] || exit 0

system=$cache/guest/system
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
mkdir -p "$root"/{bin,dev,etc/libibverbs.d,lib64,modules,proc,root,run,sys,tmp,usr/bin} \
    "$root/lib/x86_64-linux-gnu" "$root/$libraries/libibverbs"

# The libraries of programs. Those of rdma-core come from the cache: the library and its providers
# must be of one release.
own_libraries=$system/$libraries:$system/lib/x86_64-linux-gnu
add_libraries() {
    local file found library
    for file in "$@"; do
        found=$(LD_LIBRARY_PATH=$own_libraries ldd "$file" 2>/dev/null) || continue # it is static
        ! grep -q 'not found' <<<"$found" || fail "libraries of $file are missing: $(grep 'not found' <<<"$found")"
        while read -r library; do
            cp -Ln "$library" "$root/lib/x86_64-linux-gnu/"
        done < <(grep -oE '/[^ ]+\.so[^ ]*' <<<"$found")
    done
}
add_program() {
    [ -x "$1" ] || fail "$1 is not a program"
    cp -L "$1" "$root/usr/bin/"
    strip -g "$root/usr/bin/${1##*/}" 2>/dev/null || true # a smaller initramfs boots sooner
    add_libraries "$1"
}
quoted() { printf "'%s' " "${@//\'/\'\\\'\'}"; }

cp "$system/bin/busybox" "$root/bin/"
cp "$cache"/guest/modules/*.ko "$root/modules/"
cp -L /lib64/ld-linux-x86-64.so.2 "$root/lib64/"
cp "$system/$libraries"/libibverbs/librxe-rdmav*.so "$root/$libraries/libibverbs/"
echo 'driver rxe' >"$root/etc/libibverbs.d/rxe.driver"
printf 'root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n' >"$root/etc/passwd"
echo "127.0.0.1 localhost" >"$root/etc/hosts"
# Those that are loaded at run time, so that no program names them.
cp -L "$system/$libraries/libibverbs.so.1" /lib/x86_64-linux-gnu/libgcc_s.so.1 "$root/lib/x86_64-linux-gnu/"
add_libraries "$system/$libraries/libibverbs.so.1" "$root/$libraries"/libibverbs/*.so
for tool in bin/ibv_devinfo bin/ibv_rc_pingpong bin/ib_write_bw bin/rdma sbin/rdma; do
    [ ! -x "$system/usr/$tool" ] || add_program "$system/usr/$tool"
done
{
    echo 'cd /root'
    for variable in "${variables[@]}"; do echo "export $(quoted "$variable")"; done
    if [ -n "$code" ]; then
        for program in "$@"; do add_program "$program"; done
        printf '%s\n' "$code"
    else
        add_program "$1"
        echo "exec /usr/bin/$(quoted "${1##*/}" "${@:2}")"
    fi
} >"$root/job"

# The first process. Its output is the first serial port, the kernel's the second, and the third
# gets the exit code. The device and its addresses appear some time after they were asked for.
cat >"$root/init" <<INIT
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/usr/bin:/bin HOME=/root
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mkdir -p /dev/shm; mount -t tmpfs shm /dev/shm; chmod 1777 /tmp
stty -F /dev/ttyS0 raw -echo
end() { echo "\$1" >/dev/ttyS2; poweroff -f; }
give_up() { echo "run-rxe: \$*" >/dev/ttyS1; end failed; }
ulimit -l unlimited
for module in $(printf '%s ' "${modules[@]##*/}"); do
    # The emulated processor may lack what crc32-pclmul needs; crc32_generic does as well.
    insmod /modules/\$module.ko 2>/dev/ttyS1 || [ \$module = crc32-pclmul ] || give_up "cannot load \$module"
done
ip link set lo up
ip link set dummy0 mtu 9000; ip link set dummy0 up; ip addr add $address/24 dev dummy0
rdma link add rxe0 type rxe netdev dummy0 2>/dev/ttyS1 || give_up "rxe0 cannot be made"
port=/sys/class/infiniband/rxe0/ports/1
for attempt in \$(seq 100); do
    for entry in \$port/gids/*; do
        [ "\$(cat \$entry 2>/dev/null)" != $gid ] || RXE_GID_INDEX=\${entry##*/}
    done
    case "\$RXE_GID_INDEX \$(cat \$port/state)" in [0-9]*ACTIVE) break ;; esac
    usleep 100000
done
[ -n "\$RXE_GID_INDEX" ] || give_up "rxe0 has no GID $gid"
export RXE_DEV=rxe0 RXE_PORT=1 RXE_IP=$address RXE_GID_INDEX RXE_NETDEV=dummy0
sh /job </dev/null >/dev/ttyS0 2>&1
end \$?
INIT
chmod +x "$root/init"
(cd "$root" && find . | "$system/bin/busybox" cpio -o -H newc 2>/dev/null) >"$work/initramfs"
rm -rf "$root"

if command -v qemu-system-x86_64 >/dev/null; then
    qemu=(qemu-system-x86_64)
else
    qemu=(env "LD_LIBRARY_PATH=$own_libraries" "$system/usr/bin/qemu-system-x86_64"
        -L "$system/usr/share/qemu" -L "$system/usr/share/seabios")
fi
# Not with KVM: where a virtual machine offers it, a stock kernel was seen to crawl.
status=0
timeout -k 5 "$timeout" "${qemu[@]}" -accel tcg,thread=multi -M pc -cpu max -smp 2 -m 1024 \
    -kernel "$cache/guest/kernel" -initrd "$work/initramfs" \
    -append "console=ttyS1 quiet panic=-1 mitigations=off tsc=reliable random.trust_cpu=on" \
    -nodefaults -no-reboot -display none \
    -serial stdio -serial "file:$work/console" -serial "file:$work/code" </dev/null || status=$?
exit_code=$(tr -dc 0-9 <"$work/code" 2>/dev/null || true)
[ -z "$exit_code" ] || exit "$exit_code"
tail -25 "$work/console" >&2 || true
if [ "$status" -eq 124 ] || [ "$status" -eq 137 ]; then
    echo "run-rxe: not done after $timeout s" >&2
    exit 124
fi
fail "the guest ended before the program did (qemu: $status)"
