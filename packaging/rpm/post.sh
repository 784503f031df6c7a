# The group of the operators comes before the daemon, whose settings name it. A new group has no members: only root gives orders.
warn() {
    echo "pod-steer: $1" >&2
}

if ! getent group pod-steer >/dev/null; then
    groupadd --system pod-steer
    mkdir -p -m 0700 /var/lib/pod-steer
    # Only a group that this package has created is removed with it.
    touch /var/lib/pod-steer/created-group
elif [ "$1" -eq 1 ] && getent group pod-steer | grep -q ':[^:]\{1,\}$'; then
    warn "the group pod-steer has members, who may give orders to the daemon now; see pod-steer(8)"
fi
for other in /usr/local/bin/pod-steer /usr/local/sbin/pod-steer /etc/systemd/system/pod-steer.service; do
    [ ! -e "$other" ] || warn "$other hides that of the package; remove it"
done

if [ -d /run/systemd/system ]; then
    systemctl daemon-reload
fi
if [ "$1" -eq 1 ]; then
    # Also in a chroot, for its next boot.
    systemctl enable pod-steer.service || warn "cannot enable the unit; it does not start at boot"
    if [ -d /run/systemd/system ]; then
        systemctl start pod-steer.service || warn "the daemon does not start; see journalctl -u pod-steer"
    fi
elif [ -d /run/systemd/system ]; then
    # Steering goes on meanwhile, in the kernel.
    systemctl try-restart pod-steer.service || warn "the daemon does not start; see journalctl -u pod-steer"
fi
exit 0
