# Stopping the daemon ends no steering. Removing the program does, since nothing could end it afterwards. An upgrade ends nothing.
if [ "$1" -eq 0 ]; then
    systemctl --no-reload disable pod-steer.service || :
    # In a chroot, the kernel's state is that of its host.
    if [ -d /run/systemd/system ]; then
        systemctl stop pod-steer.service || :
        # Faulty settings must not keep steering in force: then the usual paths are tried.
        pod-steer unload || pod-steer unload --config /dev/null ||
            echo "pod-steer: steering has not ended completely; restart the machine to end it" >&2
    fi
fi
exit 0
