# Finds the worker on this host, or takes a copy of it from standard input, and says which it is. Lines that begin with
# `tessera` are for `coordinator launch`.
say() { printf 'tessera %s\n' "$*"; }
say here
case $way in
given)
    [ -x "$worker" ] || { say missing "$worker"; exit 1; }
    ;;
found)
    if [ ! -x "$worker" ]; then
        looked=$worker
        worker=$(command -v worker) || { say missing "$looked, and none in PATH"; exit 1; }
    fi
    ;;
copied)
    # It is called by its digest: what is there under that name, whole, needs no second copy.
    folder=${XDG_CACHE_HOME:-${HOME:?}/.cache}/tessera
    worker=$folder/worker-$digest
    if [ -x "$worker" ]; then
        touch "$worker"
    else
        umask 077
        mkdir -p "$folder" || exit 1
        find "$folder" -name 'worker-*' -mtime +30 -exec rm -f {} +
        part=$(mktemp "$folder/part-XXXXXX") || exit 1
        trap 'rm -f "$part"' EXIT
        say lacks
        cat >"$part" || exit 1
        [ "$(wc -c <"$part")" -eq "$size" ] || { echo "the copy broke off" >&2; exit 1; }
        chmod 700 "$part" && mv -f "$part" "$worker" || exit 1
    fi
    ;;
esac
said=$("$worker" --version 2>&1 | head -n 1)
say version "$said"
say worker "$worker"
