#!/bin/sh
# Runs in the chroot of the image being built. Work files lie in /vmoat-build.
set -eu
arch=$(dpkg --print-architecture)
here=/vmoat-build

# --- kernel: unpacked, not installed (see packages) -------------------------
# The cloud kernel has no 9p at all, so the full one, with most drivers removed.
meta=linux-image-$arch
pkg=$(apt-cache depends "$meta" | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
cd $here
apt-get -q download "$pkg"
dpkg-deb -x "$pkg"_*.deb k
kver=$(ls k/usr/lib/modules)
cp k/boot/vmlinuz-"$kver" /boot/vmlinuz
cp k/boot/config-"$kver" /boot/
# amd64: the ELF kernel out of the bzImage. QEMU starts it through PVH, and the
# guest does not spend seconds of emulated time unpacking 57 MB of zstd.
# (0x1f1 setup sectors, 0x248 payload offset, 0x24c its length, last 4 bytes: size)
if [ "$arch" = amd64 ]; then
  z=/boot/vmlinuz
  n() { od -An -t"u$2" -j "$1" -N "$2" $z | tr -d ' '; }
  tail -c +$((($(n 497 1) + 1) * 512 + $(n 584 4) + 1)) $z | head -c $(($(n 588 4) - 4)) | zstd -dcq >/boot/vmlinux
else
  cp /boot/vmlinuz /boot/vmlinux
fi
m=k/usr/lib/modules/$kver
# Drivers for hardware that a virtual machine never has.
for d in sound net/wireless net/mac80211 net/bluetooth net/nfc net/can net/ieee802154 net/mac802154 net/atm net/rds net/tipc net/batman-adv \
         drivers/gpu drivers/media drivers/infiniband drivers/iio drivers/staging drivers/bluetooth drivers/usb \
         drivers/net/ethernet drivers/net/wireless drivers/net/usb drivers/net/can drivers/net/phy drivers/net/wwan drivers/net/dsa drivers/net/pcs \
         drivers/hwmon drivers/input drivers/hid drivers/mfd drivers/mtd drivers/mmc drivers/leds drivers/platform drivers/power \
         drivers/regulator drivers/rtc drivers/scsi drivers/ata drivers/spi drivers/i2c drivers/pinctrl drivers/clk drivers/thermal \
         drivers/edac drivers/firewire drivers/accel drivers/soundwire drivers/thunderbolt drivers/comedi drivers/isdn drivers/nfc \
         drivers/memstick drivers/pcmcia drivers/parport drivers/w1 drivers/watchdog drivers/video drivers/target drivers/ntb drivers/cxl \
         drivers/crypto drivers/gpio drivers/nvme drivers/nvmem drivers/perf drivers/phy drivers/remoteproc drivers/soc drivers/extcon drivers/devfreq drivers/dma drivers/hv drivers/xen drivers/misc \
         fs/ocfs2 fs/gfs2 fs/jfs fs/reiserfs fs/ceph fs/dlm fs/orangefs fs/bcachefs fs/nilfs2 fs/f2fs fs/afs fs/coda fs/hfs fs/hfsplus fs/ufs fs/ubifs fs/jffs2; do
  rm -rf "$m/kernel/$d"
done
# Unpacked modules load several times faster under emulation than .ko.xz.
find "$m" -name '*.ko.xz' -exec xz -d {} +
mkdir -p /usr/lib/modules
mv "$m" /usr/lib/modules/
depmod "$kver"

# --- initramfs ---------------------------------------------------------------
i=$here/i
mkdir -p $i/bin $i/dev $i/proc $i/sys $i/root $i/modules
cp /usr/bin/busybox $i/bin/busybox 2>/dev/null || cp /bin/busybox $i/bin/busybox
install -m 755 $here/initramfs/init $i/init
sed 's/#.*//' $here/initramfs/modules | while read -r name; do
  [ -n "$name" ] || continue
  modprobe -S "$kver" --show-depends "$name" 2>/dev/null || true
done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | awk '!seen[$0]++' | while read -r f; do
  cp "$f" $i/modules/
  basename "$f" >>$i/modules.list
done
mknod $i/dev/console c 5 1 2>/dev/null || true # the kernel's own rootfs has one otherwise
(cd $i && find . | sort | busybox cpio -o -H newc -R 0:0 2>/dev/null) >/boot/initrd

# --- services ----------------------------------------------------------------
. $here/services.sh

# --- apt ---------------------------------------------------------------------
# Reading the lists takes apt 20 s under emulation; with these it takes one.  Last, for a newer
# list or dpkg status makes them void.
apt-cache gencaches >/dev/null
