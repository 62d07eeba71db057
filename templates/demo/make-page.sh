# The stage `page`: the page with the greeting of the seed file.
set -eu
. ./.env
sed "s|@GREETING@|$GREETING|" page.html >build/index.html
