# Stopping the daemon ends no steering. Removing the program does, since nothing could end it afterwards. An upgrade ends nothing.
# A unit of this name that was installed by hand is not the package's. A mask, a link to /dev/null, is no file.
unit=/etc/systemd/system/pod-steer.service
if [ "$1" -eq 0 ] && [ ! -f "$unit" ]; then
    systemctl --no-reload disable pod-steer.service || :
    # In a chroot, the kernel's state is that of its host.
    if [ -d /run/systemd/system ]; then
        systemctl stop pod-steer.service || :
    fi
fi
# Steering goes on: says why, and how to end it.
left() {
    [ ! -e /sys/fs/bpf/pod-steer ] || echo "pod-steer: steering goes on, since $1" >&2
}
if [ "$1" -eq 0 ]; then
    if [ -f "$unit" ] || [ -e /usr/local/bin/pod-steer ] || [ -e /usr/local/sbin/pod-steer ]; then
        # It uses the same state. The path of scripts does not lead to it.
        left "another pod-steer is installed by hand; to end it, run the \`unload\` of that one"
    elif [ ! -d /run/systemd/system ]; then
        left "systemd does not run here; to end it, restart the machine, or install the package again and run \`pod-steer unload\`"
    else
        # Faulty settings must not keep steering in force: then the usual paths are tried.
        pod-steer unload || pod-steer unload --config /dev/null ||
            echo "pod-steer: steering has not ended completely; restart the machine to end it" >&2
    fi
fi
exit 0
