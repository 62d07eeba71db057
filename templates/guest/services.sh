# Sourced by customize.sh: which parts of systemd run at all.
mask() { for u; do ln -sf /dev/null "/etc/systemd/system/$u"; done; }

mkdir -p /data /etc/vmoat
printf 'nameserver 10.0.2.3\n' >/etc/resolv.conf
printf 'vmoat\n' >/etc/hostname
printf '127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.1.1 vmoat\n' >/etc/hosts
: >/etc/fstab
rm -f /etc/ssh/ssh_host_*  # never one key for all: the host hands one over
# "uninitialized" would mean first boot, an empty file only "make one"
: >/etc/machine-id
rm -f /var/lib/dbus/machine-id

# Generators: one exec each before anything starts. fstab's stays.
mkdir -p /etc/systemd/system-generators
for g in /usr/lib/systemd/system-generators/*; do
  case ${g##*/} in systemd-fstab-generator) ;; *) ln -sf /dev/null "/etc/systemd/system-generators/${g##*/}" ;; esac
done

# udev: device nodes come from devtmpfs, names stay eth0/vda, modules are loaded
# by name. Its coldplug is the single most expensive thing in a stock boot.
mask systemd-udevd.service systemd-udev-trigger.service systemd-udev-load-credentials.service \
  systemd-udevd-control.socket systemd-udevd-kernel.socket systemd-udev-settle.service
# Things that a fresh, host-owned, single-purpose VM has no use for.
mask systemd-remount-fs.service systemd-random-seed.service systemd-sysusers.service systemd-firstboot.service \
  systemd-machine-id-commit.service systemd-hwdb-update.service systemd-journal-catalog-update.service \
  systemd-update-done.service ldconfig.service systemd-journal-flush.service systemd-hibernate-clear.service \
  systemd-pstore.service systemd-binfmt.service proc-sys-fs-binfmt_misc.automount \
  systemd-pcrmachine.service systemd-pcrphase-sysinit.service systemd-pcrphase.service systemd-tpm2-setup-early.service systemd-tpm2-setup.service \
  systemd-pcrextend.socket systemd-pcrlock.socket systemd-creds.socket systemd-sysext.socket systemd-initctl.socket systemd-hostnamed.socket \
  systemd-tmpfiles-setup-dev-early.service systemd-tmpfiles-setup-dev.service kmod-static-nodes.service systemd-modules-load.service \
  modprobe@.service dev-hugepages.mount sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount \
  sys-fs-fuse-connections.mount tmp.mount run-lock.mount \
  systemd-logind.service systemd-user-sessions.service systemd-ask-password-wall.path systemd-ask-password-console.path \
  getty.target getty-static.service console-getty.service remote-fs.target systemd-battery-check.service \
  sshd-keygen.service ssh.socket systemd-networkd-wait-online.service systemd-rfkill.socket systemd-vconsole-setup.service \
  e2scrub_reap.service e2scrub_all.timer apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer logrotate.timer man-db.timer \
  dev-mqueue.mount
systemctl set-default multi-user.target
systemctl enable ssh.service docker.service docker.socket containerd.service vmoat-modules.service vmoat-watch.service
# dbus by its socket, when somebody asks
rm -f /usr/lib/systemd/system/multi-user.target.wants/dbus.service
update-alternatives --set iptables /usr/sbin/iptables-nft >/dev/null 2>&1 || true
# sockets.target must not wait for dbus.socket, which now comes after docker
rm -f /usr/lib/systemd/system/sockets.target.wants/dbus.socket
mkdir -p /etc/systemd/system/multi-user.target.wants
ln -sf /usr/lib/systemd/system/dbus.socket /etc/systemd/system/multi-user.target.wants/dbus.socket
