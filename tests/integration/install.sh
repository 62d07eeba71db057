# What a package manager does to a folder: bash install.sh FOLDERS ROUNDS DIR...
# FOLDERS folders of ten small files each are unpacked into each DIR, read, and removed, in turns;
# prints the quickest round of each, in milliseconds.
set -e
work=/var/tmp/vmoat-install
mkdir -p $work/src
perl -e 'for $i (1..$ARGV[0]) { mkdir "$ARGV[1]/p$i"; for (0..9) {
  open F, ">", "$ARGV[1]/p$i/$_"; print F "x" x 700 } }' "$1" $work/src
tar -C $work/src -cf $work/pack.tar .
rounds=$2 best=()
shift 2
for ((n = 0; n < rounds; n++)); do
  for ((d = 1; d <= $#; d++)); do
    into=${!d}/vmoat-unpacked
    sync
    began=${EPOCHREALTIME/./}
    mkdir -p "$into"
    tar -C "$into" -xf $work/pack.tar
    ! grep -rqs no-such-word "$into"
    rm -rf "$into"
    took=$(((${EPOCHREALTIME/./} - began) / 1000))
    [ "${best[d]:-$took}" -lt "$took" ] || best[d]=$took
  done
done
echo "${best[@]}"
