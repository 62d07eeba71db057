#!/bin/sh
# Made by vmoat: mounts and identity of this boot.  Again and again without harm.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
. /etc/vmoat/env
new=$1
mkdir -p /run/vmoat /var/lib/vmoat
exec 9>/run/vmoat/boot.lock && flock 9
say() { echo "vmoat-boot: $*" >&2; echo "vmoat-boot: $*" >/dev/kmsg; }
there() { mountpoint -q "$1"; }
failed=
while IFS=: read -r name _ uid gid _ home _; do
  [ "$uid" = "$VMOAT_UID" ] && VMOAT_USER=$name VMOAT_GID=$gid VMOAT_HOME=$home
done </etc/passwd
install -d -m 0700 -o "$VMOAT_UID" -g "$VMOAT_GID" /run/vmoat/user
# the data disk: which one it is, and what of another VM's must not start here
data=/mnt/lima-colima-vm
if there "$data"; then
  known=
  [ -r "$data/.vmoat-disk" ] && read -r known <"$data/.vmoat-disk"
  if [ "$known" != "$VMOAT_DATA" ]; then
    if [ "$VMOAT_COPIED" = 1 ]; then
      rm -rf "$data/vmoat" "$data/.vmoat-disk"
      for file in "$data"/docker/containers/*/hostconfig.json; do
        [ ! -e "$file" ] ||
          sed -i 's/"RestartPolicy":{"Name":"[^"]*"/"RestartPolicy":{"Name":"no"/' "$file"
      done
    else
      echo "$VMOAT_DATA" >"$data/.vmoat-disk"
    fi
  fi
  mkdir -p "$data/vmoat" /data
  there /data || mount --bind "$data/vmoat" /data || failed=1
  echo "$VMOAT_DATA" >/run/vmoat/data-id
else
  say "the data disk is not mounted yet"; failed=1
fi
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
# Debian's own starts two programs at each login
if [ -e /usr/lib/vmoat/profile ] && ! cmp -s /usr/lib/vmoat/profile /etc/profile; then
  [ -e /etc/profile.before-vmoat ] || cp -p /etc/profile /etc/profile.before-vmoat
  cp /usr/lib/vmoat/profile /etc/profile
fi
[ ! -d /var/lib/cloud/instance ] || : >/var/lib/cloud/instance/locale-check.skip
grep -qs /etc/vmoat/gitconfig /etc/gitconfig ||
  printf '[include]\n\tpath = /etc/vmoat/gitconfig\n' >>/etc/gitconfig
for home in /root "$VMOAT_HOME"; do docker_config "$home"; done
if [ "$new" != 0 ]; then
  # root's first login would wait for its service manager (1.3 s under emulation)
  loginctl enable-linger root 2>/dev/null
  # In a VM's first boot systemd has read none of these files, Colima makes it read all of them
  # before it starts dockerd, and nobody is to log in before Lima's boot is over (2 s of it).
  later=--no-block
  if [ "$new" != first ] || systemctl -q is-active docker.service; then
    later= && systemctl daemon-reload
  fi
  systemctl reload $later ssh.service 2>/dev/null || systemctl reload $later sshd.service
  systemctl restart --no-block vmoat-watch.service
  # before Colima has started it, this does nothing
  systemctl try-restart docker.service
fi
[ -e /home/ann/src/feature/.git ] || { say "the worktree is not shared yet"; failed=1; }
view() { # path: the host's git folder below, this VM's own writes above
  findmnt -n -o SOURCE --mountpoint "$1" 2>/dev/null | grep -qx vmoat-git && return
  [ -e "$1/HEAD" ] || { say "the git folder is not shared yet"; failed=1; return; }
  store=/var/lib/vmoat/git
  mkdir -p /run/vmoat/git/common $store/upper $store/work
  chown "$VMOAT_UID:$VMOAT_GID" $store/upper
  there /run/vmoat/git/common || mount --bind "$1" /run/vmoat/git/common || failed=1
  mount -t overlay -o "lowerdir=/run/vmoat/git/common,upperdir=$store/upper,workdir=$store/work,\
redirect_dir=off,index=off,metacopy=off,xino=off" vmoat-git "$1" ||
    { say "cannot mount the git view"; failed=1; }
}
view /home/ann/src/app/.git
[ ! -s /etc/vmoat/local.sh ] || sh /etc/vmoat/local.sh || failed=1
[ -z "$failed" ] || exit 1
if [ "$new" != 0 ]; then
  # Known as unpacked once it is on the disk: a VM that is killed soon after its first boot would
  # have lost its files, and cloud-init would make other host keys in the next.
  systemd-run --quiet --no-block --collect --unit=vmoat-sync sh -c \
    "sync -f /etc && echo $VMOAT_FILES >/etc/vmoat/equipped && sync -f /etc"
fi
echo "$VMOAT_TOKEN" >/run/vmoat/boot
say "ready $VMOAT_TOKEN"
# While Colima still sets up dockerd: the first `docker compose up` would wait for their pages.
systemd-run --quiet --no-block --collect --nice=19 --unit=vmoat-warm \
  sh -c 'docker compose version; docker buildx version' >/dev/null 2>&1
exit 0
