# Becomes a worker. Its standard input is what is left of this one, whose end is the worker's: it is closed however the
# launching process ends.
printf 'tessera here\n'
if [ -z "$coordinator" ]; then
    # The machine that launches, as this one sees it.
    from=${SSH_CONNECTION%% *}
    case $from in *:*) from=[$from] ;; esac
    coordinator=$from:$port
fi
if [ -z "$threads" ] && [ "$shared" -gt 1 ]; then
    cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
    threads=$((cores / shared))
    [ "$threads" -gt 0 ] || threads=1
fi
[ -z "$threads" ] || set -- "$@" --threads "$threads"
[ -z "$token" ] || { TESSERA_TOKEN=$token && export TESSERA_TOKEN; }
exec "$worker" join --coordinator "$coordinator" --with-parent "$@" >&2
