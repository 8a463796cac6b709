# shellcheck shell=bash
# Shared by scripts/test, scripts/test-debian, scripts/demo and .ci/run; to be sourced.

say() { printf '== %s\n' "$*"; }
die() { printf '%s: %s\n' "$0" "$*" >&2; exit 1; }

# Puts pyenv's interpreters on PATH: its shims answer for the selected versions only.
add_pyenv_to_path() {
  local bin root=${PYENV_ROOT:-}
  [[ $root ]] || root=~/.pyenv
  for bin in "$root"/versions/3.[0-9][0-9].*/bin; do
    [[ -d $bin ]] && PATH=$bin:$PATH
  done
  export PATH
}

# Prints a Python >= 3.10, the oldest of those found: types that hold there hold everywhere.
find_python() {
  local python
  for python in python3.10 python3.11 python3.12 python3.13 python3.14 python3 python; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
      "$python" -c 'import sys; print(sys.executable)'
      return
    fi
  done
  return 1
}

# make_venv FOLDER: a virtual environment, made anew when its interpreter has gone.
make_venv() {
  local python
  "$1/bin/python" -m pip --version >/dev/null 2>&1 && return
  find_python >/dev/null || install_debian python3
  python=$(find_python) || die "no Python >= 3.10 on PATH"
  say "virtual environment $1, with $python"
  "$python" -c 'import ensurepip' 2>/dev/null || install_debian python3-venv
  "$python" -m venv --clear "$1"
}

# install_debian PACKAGE...: installs those that are missing, or says what to type.
install_debian() {
  local package missing=()
  if ! is_debian; then
    say "not Debian: please see to the equivalents of: $*"
    return
  fi
  for package; do
    [[ $(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
  done
  ((${#missing[@]})) || return 0
  as_root true 2>/dev/null || die "Debian packages are missing. Type: sudo apt-get update && sudo apt-get install ${missing[*]}"
  say "installing Debian's ${missing[*]}"
  as_root apt-get update --quiet --quiet
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install --yes --quiet --quiet --no-install-recommends "${missing[@]}" </dev/null
}

is_debian() { command -v apt-get >/dev/null; }
can_install_debian() { is_debian && as_root true 2>/dev/null; }

as_root() {
  if ((EUID == 0)); then "$@"; else sudo --non-interactive "$@"; fi
}

# listens HOST PORT
listens() {
  # shellcheck disable=SC2016 # the inner bash expands it
  timeout 5 bash -c 'exec 3<>"/dev/tcp/$0/$1"' "$1" "$2" 2>/dev/null
}

# wait_until SECONDS COMMAND...
wait_until() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@"; do
    ((SECONDS < deadline)) || return 1
    sleep 0.2
  done
}

mysql_answers() { listens "${MYSQL_HOST:-127.0.0.1}" "${MYSQL_PORT:-3306}"; }
postgresql_answers() { listens "${PGHOST:-127.0.0.1}" "${PGPORT:-5432}"; }
redis_answers() {
  local address=${REDIS_URL:-redis://127.0.0.1:6379}
  address=${address#*://} address=${address##*@} address=${address%%/*}
  [[ $address == *:* ]] || address+=:6379
  listens "${address%:*}" "${address##*:}"
}
is_loopback() { [[ $1 == localhost || $1 == 127.* || $1 == ::1 ]]; }

# Everything that the tests need beside Python packages. A database server that answers is used as it is, one that is
# installed but stopped is started; only one installed here is set up: no password on the loopback interface.
prepare_machine() {
  local packages=(gcc libc6-dev libmariadb-dev pkg-config python3-dev uwsgi-core uwsgi-plugin-python3 python3-uwsgidecorators)
  packages+=(g++ odbc-mariadb odbc-postgresql odbcinst unixodbc-dev)
  # For systemd-analyze, which needs no systemd that runs.
  packages+=(systemd)
  # The page of `receive --web` is tested in it.
  packages+=(chromium chromium-driver)
  local fresh=()

  if mysql_answers; then
    say "MySQL or MariaDB: the server that runs"
  else
    is_loopback "${MYSQL_HOST:-127.0.0.1}" || die "no MySQL or MariaDB answers at MYSQL_HOST=$MYSQL_HOST"
    [[ -x /usr/sbin/mariadbd ]] || fresh+=(mariadb)
    packages+=(mariadb-server)
  fi
  if postgresql_answers; then
    say "PostgreSQL: the server that runs"
  else
    is_loopback "${PGHOST:-127.0.0.1}" || die "no PostgreSQL answers at PGHOST=$PGHOST"
    command -v pg_ctlcluster >/dev/null || fresh+=(postgresql)
    packages+=(postgresql)
  fi
  if redis_answers; then
    say "Redis: the server that runs"
  else
    [[ -z ${REDIS_URL:-} ]] || die "no Redis answers at REDIS_URL"
    packages+=(redis-server)
  fi

  ! can_install_debian || remember_to_set_up "${fresh[@]}"
  install_debian "${packages[@]}"
  redis_answers || start_redis
  mysql_answers || start_mariadb
  set_up mariadb "${MYSQL_HOST:-127.0.0.1}"
  # Before it is started: that tells it its port.
  set_up postgresql "${PGHOST:-127.0.0.1}"
  postgresql_answers || start_postgresql
}

# remember_to_set_up NAME...: a run that fails between installation and set-up leaves the latter to the next one, which
# finds the server installed.
remember_to_set_up() {
  local name
  for name; do
    mkdir -p .tox/to-set-up
    touch ".tox/to-set-up/$name"
  done
}

# set_up NAME HOST: what is to be set up still, where it is the one on this machine that is tested with.
set_up() {
  [[ -e .tox/to-set-up/$1 ]] && is_loopback "$2" || return 0
  say "setting up $1"
  "set_up_$1"
  rm ".tox/to-set-up/$1"
}

start_mariadb() {
  say "starting MariaDB"
  [[ -x /usr/sbin/mariadbd ]] || die "no MySQL or MariaDB answers at port ${MYSQL_PORT:-3306}: please start one"
  as_root install -d -o mysql -g mysql /run/mysqld
  as_root start-stop-daemon --start --oknodo --background --exec /usr/sbin/mariadbd -- \
    --user=mysql "--port=${MYSQL_PORT:-3306}"
  wait_until 60 mysql_answers || die "MariaDB does not answer at port ${MYSQL_PORT:-3306}: see /var/log/mysql"
}

set_up_mariadb() {
  as_root mariadb --protocol=socket <<'SQL'
CREATE DATABASE IF NOT EXISTS test;
ALTER USER root@localhost IDENTIFIED VIA unix_socket OR mysql_native_password USING PASSWORD('');
SQL
}

start_redis() {
  say "starting Redis"
  redis-server --bind 127.0.0.1 --port 6379 --daemonize yes --save '' --dir /tmp >/dev/null
  wait_until 60 redis_answers || die "Redis does not answer at port 6379"
}

postgresql_version() {
  find /etc/postgresql -mindepth 1 -maxdepth 1 -printf '%f\n' 2>/dev/null | sort --version-sort | tail -1
}

start_postgresql() {
  say "starting PostgreSQL"
  command -v pg_ctlcluster >/dev/null || die "no PostgreSQL answers at port ${PGPORT:-5432}: please start one"
  # Without systemd: containers have none.
  as_root pg_ctlcluster --skip-systemctl-redirect "$(postgresql_version)" main start || true
  wait_until 60 postgresql_answers || die "PostgreSQL does not answer at port ${PGPORT:-5432}: see /var/log/postgresql"
}

set_up_postgresql() {
  local folder
  folder=/etc/postgresql/$(postgresql_version)/main
  as_root sed -i -E 's,^(host +all +all +(127\.0\.0\.1/32|::1/128) +).*,\1trust,' "$folder/pg_hba.conf"
  as_root sed -i -E "s,^#?port = .*,port = ${PGPORT:-5432}," "$folder/postgresql.conf"
  as_root pg_ctlcluster --skip-systemctl-redirect "$(postgresql_version)" main stop || true
  start_postgresql
  as_postgres "SELECT 1 FROM pg_database WHERE datname = 'test'" | grep --quiet 1 || as_postgres "CREATE DATABASE test"
}

as_postgres() {
  psql --quiet --tuples-only --no-psqlrc --host "${PGHOST:-127.0.0.1}" --port "${PGPORT:-5432}" \
    --username postgres --dbname postgres --command "$1"
}

# run_tox ARGUMENT...: tox from a virtual environment inside the checkout; uv makes tox's environments.
run_tox() {
  local options=()
  make_venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check 'tox>=4.22' 'tox-uv>=1.20'
  # uv would fetch a Python that is missing.
  export UV_PYTHON_DOWNLOADS=never
  [[ ${CI:-} != true ]] || options+=(--skip-missing-interpreters=false)
  # Debian's stable releases have no Python 3.14 yet. Where it is missing, the root of Debian sid tests with it.
  command -v python3.14 >/dev/null || export TOX_SKIP_ENV='^py314$'
  .venv/bin/tox run "${options[@]}" "$@"
}
