# RPM has no purge: removing leaves nothing but settings that were changed. After an `unload` that failed, the kernel's objects stay until the
# next boot: their pins are what a later `unload` finds them by.
if [ -d /run/systemd/system ]; then
    systemctl daemon-reload || :
fi
if [ "$1" -eq 0 ]; then
    # RPM removes only directories that are listed, and cargo-generate-rpm lists files.
    for dir in /usr/share/doc/pod-steer/examples /usr/share/doc/pod-steer /usr/share/licenses/pod-steer \
        /usr/share/pod-steer/apparmor /usr/share/pod-steer/selinux /usr/share/pod-steer; do
        rmdir --ignore-fail-on-non-empty "$dir" || :
    done
fi
# Another pod-steer, installed by hand, may use the same state. The path of scripts does not lead to it.
has_other() {
    [ -e /usr/local/bin/pod-steer ] || [ -e /usr/local/sbin/pod-steer ] || [ -f /etc/systemd/system/pod-steer.service ]
}
if [ "$1" -eq 0 ] && ! has_other; then
    if [ -e /var/lib/pod-steer/created-group ]; then
        groupdel pod-steer || echo "pod-steer: the group pod-steer is still in use; remove it with groupdel" >&2
    fi
    rm -rf --one-file-system /var/lib/pod-steer /run/pod-steer || :
    if [ -e /sys/fs/bpf/pod-steer ]; then
        echo "pod-steer: /sys/fs/bpf/pod-steer is still there; restart the machine to end steering" >&2
    fi
fi
exit 0
