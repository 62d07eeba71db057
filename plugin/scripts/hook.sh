#!/bin/sh
# hook.sh facts: what a session should know of this worktree's VM, for SessionStart.  Starts nothing.
# hook.sh reap:  have vmoat remove the VMs of worktrees that are gone, and don't wait for it: at the
#                end of a session there are 1.5 seconds, whatever hooks.json says.
# Silent and successful where vmoat is missing, or fails: a hook's error would be the user's to see.

configured() { [ -e vmoat.toml ] || [ -e vmoat.conf ]; }

missing='This project uses vmoat, which is not installed here: `pipx install vmoat`, then'
missing="$missing \`vmoat doctor\`.\\nUntil then, do not start its stack on the host."

case "$1" in
facts)
    if command -v vmoat >/dev/null 2>&1; then
        vmoat hook facts </dev/null 2>/dev/null
    elif configured; then
        printf '{"hookSpecificOutput": {"hookEventName": "SessionStart", "additionalContext": "%s"}}\n' \
            "$missing"
    fi
    ;;
reap)
    command -v vmoat >/dev/null 2>&1 || exit 0
    # The worktree may be gone, and the session's folder with it.
    cd / || exit 0
    command -v setsid >/dev/null 2>&1 && own=setsid || own=
    nohup $own vmoat gc --quiet </dev/null >/dev/null 2>&1 &
    ;;
esac
exit 0
