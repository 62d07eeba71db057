# CMD_TEST: runs inside the VM; the words after `vmoat test` are its arguments.
set -eu
page=$(curl -fsS http://localhost:8080/)
echo "$page" | grep -qF "Greetings from the main checkout"
echo "$page" | grep -qF "${1:-version}"
test "$(curl -fsS http://localhost:9000/ | jq -r .state)" = well
command -v tree >/dev/null
echo "ok: the page, the api and the package are there"
