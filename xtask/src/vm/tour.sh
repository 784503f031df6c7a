# The console of the machine: the demo, then README's quick start, then a shell.
[ "$(tty)" = /dev/ttyS0 ] || [ "$(tty)" = /dev/ttyAMA0 ] || return 0

# Says a command, and runs it.
run() { printf '\n# %s\n' "$*"; "$@"; }

# Waits until a version answers at port 80.
answered() {
    for _ in $(seq 600); do
        curl --silent --max-time 5 http://127.0.0.1/ | grep -q "$1" && return 0
        sleep 0.1
    done
    echo "no answer of $1 at port 80"
    return 1
}

# Starts a version behind Docker's bridge, and publishes nothing.
start() {
    run docker run --detach --name "$1" --label pod-steer.service=web --label pod-steer.ports=80:8080 \
        --label "pod-steer.version=$2" --label pod-steer.rollout=latest server /named-server --name "$1" --listen 0.0.0.0:8080
}

tour() {
    export CARGO_MANIFEST_DIR=/opt/tour/xtask
    run pod-steer doctor &&
        run /opt/tour/xtask demo-with --docker --pod-steer /usr/bin/pod-steer --named-server /opt/tour/named-server &&
        tar -C /opt/tour -cf - named-server | docker import - server >/dev/null &&
        start web-1 v1 && answered web-1 && start web-2 v2 && answered web-2 &&
        run pod-steer status
}

if grep -q pod-steer.check /proc/cmdline; then
    if tour; then echo "verdict of the machine: ok"; else echo "verdict of the machine: the tour failed"; fi
    systemctl --quiet poweroff
else
    tour
    cat <<'END'

This machine is yours: a Debian with Docker and pod-steer. Try `pod-steer top`, `pod-steer history web`,
`pod-steer rollback web`, `curl http://127.0.0.1/`. `poweroff` ends it, and nothing is left of it.
END
fi
