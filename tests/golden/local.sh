#!/bin/sh
# Made by vmoat: these folders of the worktree lie on this VM's own disk.
PATH=/usr/sbin:/usr/bin:/sbin:/bin
top='/w/it'"'"'s $x' failed=
lay() { # path in the worktree
  at=$top/$1 own=/data/local/$1
  [ "$at" -ef "$own" ] && return
  [ -d "$own" ] || install -d -o 1000 -g 100 "$own"
  [ -d "$at" ] || mkdir -p "$at"
  mount --bind "$own" "$at" && [ "$at" -ef "$own" ] || { echo "vmoat: $1 is not laid"; failed=1; }
}
lay node_modules
lay 'web/it'"'"'s'
[ -z "$failed" ]
