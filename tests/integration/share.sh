# What a shared folder is asked for all day: bash share.sh FILES MIB DIR...
# In each DIR, FILES small files in folders of ten are made, stat'ed and removed, and a file of MIB
# mebibytes is written (to the disk) and read (nothing of it cached).  Its bytes are random: disks
# that tell zeroes from others would not write any.
# Prints a line for each DIR: five times in milliseconds.
set -e
files=$1 mib=$2
shift 2
forget() { sync; sudo sh -c 'echo 3 >/proc/sys/vm/drop_caches'; }
clock() {
  local began=${EPOCHREALTIME/./}
  "$@"
  printf '%s ' $(((${EPOCHREALTIME/./} - began) / 1000))
}
make() { perl -e 'for $i (0..$ARGV[0] / 10 - 1) { mkdir "$ARGV[1]/p$i"; for (0..9) {
  open F, ">", "$ARGV[1]/p$i/$_" or die "$!"; print F "x" x 700; close F } }' "$files" "$1"; }
look() { perl -e 'for $i (0..$ARGV[0] / 10 - 1) { for (0..9) { lstat "$ARGV[1]/p$i/$_" or die "$!" } }' "$files" "$1"; }
fill() { perl -MIO::Handle -e 'open R, "<", "/dev/urandom"; read R, my $block, 1 << 20;
  open F, ">", $ARGV[1] or die "$!"; for (1..$ARGV[0]) { syswrite(F, $block) == 1 << 20 or die "$!" }
  F->sync or die "$!"' "$mib" "$1"; }
for dir; do
  tree=$dir/vmoat-many large=$dir/vmoat-large
  mkdir -p "$tree"
  forget
  clock make "$tree"
  forget
  clock look "$tree"
  clock rm -rf "$tree"
  clock fill "$large"
  forget
  clock dd if="$large" of=/dev/null bs=1M status=none
  rm -f "$large"
  echo
done
