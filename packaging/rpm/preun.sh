# Stopping the daemon ends no steering. Removing the program does, since nothing could end it afterwards. An upgrade ends nothing.
unit=/etc/systemd/system/pod-steer.service
if [ "$1" -eq 0 ] && [ ! -e "$unit" ]; then
    systemctl --no-reload disable pod-steer.service || :
    # In a chroot, the kernel's state is that of its host.
    if [ -d /run/systemd/system ]; then
        systemctl stop pod-steer.service || :
    fi
fi
# Another pod-steer, installed by hand, uses the same state, and goes on. The path of scripts does not lead to it.
if [ "$1" -eq 0 ] && [ -d /run/systemd/system ] &&
    [ ! -e "$unit" ] && [ ! -e /usr/local/bin/pod-steer ] && [ ! -e /usr/local/sbin/pod-steer ]; then
    # Faulty settings must not keep steering in force: then the usual paths are tried.
    pod-steer unload || pod-steer unload --config /dev/null ||
        echo "pod-steer: steering has not ended completely; restart the machine to end it" >&2
fi
exit 0
