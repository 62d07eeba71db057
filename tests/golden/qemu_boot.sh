#!/bin/sh
# Made by vmoat for this VM at each start; run before sshd.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
. /etc/vmoat/env
mkdir -p /run/vmoat /var/lib/vmoat
# in memory, and this user's alone: the host's socket for docker logins (vmoat/credentials.py), and
# what `docker login` stores in here
install -d -m 0700 -o "$VMOAT_UID" -g "$VMOAT_GID" /run/vmoat/user
failed=
say() { echo "vmoat-boot: $*" >/dev/kmsg; }
there() { mountpoint -q "$1"; }
own() { # path: folders that lead to it through the user's home are the user's
  home=${VMOAT_HOME:-/home/$VMOAT_USER} at=$1
  while case $at in "$home"/*) ;; *) false ;; esac; do
    chown "$VMOAT_UID:$VMOAT_GID" "$at"
    at=${at%/*}
  done
}
share() { # kind tag options path
  there "$4" && return
  mkdir -p "$4" && own "$4"
  mount -t "$1" -o "$3" "$2" "$4" || { say "cannot mount $2"; failed=1; }
}
borrowed() { # source path
  there "$2" && return
  mkdir -p "$2" && mount --bind "$1" "$2" || { say "cannot mount borrowed objects"; failed=1; }
}
view() { # path: the host's git folder below, this VM's own writes above
  there "$1" && return
  mkdir -p /var/lib/vmoat/git/upper /var/lib/vmoat/git/work "$1"
  own "$1"
  chown "$VMOAT_UID:$VMOAT_GID" /var/lib/vmoat/git/upper
  mount -t overlay -o "lowerdir=/run/vmoat/git/common,upperdir=/var/lib/vmoat/git/upper,\
workdir=/var/lib/vmoat/git/work,redirect_dir=off,index=off,metacopy=off,xino=off" vmoat-git "$1" ||
    { say "cannot mount the git view"; failed=1; }
}
check() { # a virtiofsd that no guest has tried yet
  mkdir -p /run/vmoat/check
  if why=$(mount -t virtiofs -o rw,nosuid,nodev check /run/vmoat/check 2>&1 &&
    /usr/bin/perl /usr/lib/vmoat/check-share /run/vmoat/check 2>&1); then
    say "virtiofs is well"
  else
    say "virtiofs fails: $why"
  fi
  umount -l /run/vmoat/check 2>/dev/null
}
modprobe -a -b -q 9pnet_virtio 9p overlay
share 9p git trans=virtio,version=9p2000.L,msize=512000,cache=none,ro,nosuid,nodev /run/vmoat/git
share 9p share0 trans=virtio,version=9p2000.L,msize=512000,cache=none,ro,nosuid,nodev /srv/data
share 9p worktree trans=virtio,version=9p2000.L,msize=512000,cache=mmap,directio,rw,nosuid,nodev '/srv/it'"'"'s $HOME/wt'
view '/srv/it'"'"'s $HOME/.git'
borrowed /run/vmoat/git/alternate0 /srv/mirror/objects
[ ! -s /etc/vmoat/local.sh ] || sh /etc/vmoat/local.sh >/dev/kmsg 2>&1
# which disks these are: written once, by their first boot
[ -s /etc/vmoat/disk-id ] || echo "$VMOAT_DISK" >/etc/vmoat/disk-id
if there /data; then
  [ -s /data/.vmoat-disk ] || echo "$VMOAT_DATA" >/data/.vmoat-disk
  cat /data/.vmoat-disk >/run/vmoat/data-id
  [ -z "$VMOAT_GROW" ] || resize2fs /dev/vdb >/dev/null 2>&1 || say "cannot grow the data disk"
else
  say "the data disk is not mounted"; failed=1
fi
# which boot this is: the host's token; a reboot from inside repeats it and is counted
n=0 last=
[ -r /var/lib/vmoat/boots ] && read -r last n </var/lib/vmoat/boots
[ "$last" = "$VMOAT_TOKEN" ] || n=0
n=$((n + 1))
echo "$VMOAT_TOKEN $n" >/var/lib/vmoat/boots
boot=$VMOAT_TOKEN
[ $n = 1 ] || boot=$VMOAT_TOKEN.$n
if [ -s /etc/vmoat/extra.crt ] && ! cmp -s /etc/vmoat/extra.crt /var/lib/vmoat/extra.crt; then
  bundle=/etc/ssl/certs/ca-certificates.crt
  [ -e /var/lib/vmoat/stock.crt ] || cp $bundle /var/lib/vmoat/stock.crt
  cat /var/lib/vmoat/stock.crt /etc/vmoat/extra.crt >$bundle.new && mv $bundle.new $bundle
  cp /etc/vmoat/extra.crt /var/lib/vmoat/extra.crt
fi
docker_config() { # home: docker's settings, merged into what the user has
  [ -d "$1" ] || return
  file=$1/.docker/config.json own=
  if [ -e "$file" ]; then
    while IFS= read -r line || [ -n "$line" ]; do own=$own$line; done <"$file"
    # with a store, helper or login of its own it stays as it is: it would lose these
    case $own in
      *'"credsStore"'* | *'"credHelpers"'* | *'"auth"'* | *'"identitytoken"'*) return ;;
    esac
    /usr/bin/perl -MJSON::PP -0777 -e '
      my ($own, $ours) = map { open my $in, "<", $_ or die; decode_json(<$in> || "{}") } @ARGV;
      open my $out, ">", "$ARGV[0].vmoat" or die;
      print $out JSON::PP->new->utf8->pretty->canonical->encode({ %$ours, %$own });
      close $out or die;
      rename "$ARGV[0].vmoat", $ARGV[0] or die
    ' "$file" /etc/vmoat/docker.json 2>/dev/null || return
  else
    mkdir -p -m 0700 "$1/.docker" && cp /etc/vmoat/docker.json "$file" || return
  fi
  [ "$1" = /root ] || chown "$VMOAT_UID:$VMOAT_GID" "$1/.docker" "$file"
}
for home in /root "${VMOAT_HOME:-/home/$VMOAT_USER}"; do docker_config "$home"; done
[ -z "$failed" ] || { echo failed >/run/vmoat/mounts-failed; }
echo "$boot" >/run/vmoat/boot
say "ready"
