#!/bin/sh
# Installs, upgrades and uninstalls memu-backup on a machine with systemd. docs/admin.md tells what it does, and why.
# Killed anywhere, it is simply typed again: what counts is put in its place by one rename, when it is known to work.
set -eu
umask 022

usage() {
    cat <<'END'
Usage: sudo deploy/install.sh [--preset NAME] [--home DIR] [--with-packages] [--dry-run]
       sudo deploy/install.sh --uninstall [--purge [--yes]] [--dry-run]

Installs memu-backup out of this folder, or upgrades what is installed. What it makes:
  /opt/memu-backup                            the program, in a virtual environment of its own
  /usr/local/bin/memu-backup                  the command
  /etc/systemd/system/memu-backup.service     the service
  /etc/memu-backup                            settings, if there are none; those that are there stay as they are

  --preset NAME     the system to write first settings for: kuroibara, medianest,
                    memu (unless given), monsterr, soundbox
  --home DIR        the folder of that system (Memu's docker-compose.yml); looked for unless given
  --with-packages   also install the Debian package that makes virtual environments, if it is missing
  --uninstall       remove the program, the command and the service; settings, history and backups stay
  --purge           with --uninstall: remove settings and history (/var/lib/memu-backup) too; never a backup
  --yes             with --purge: do not ask
  --dry-run         only say what would be done
END
}

root=/opt/memu-backup
link=$root/venv                                    # to the version in use
versions=$root/versions
log=$root/install.log
command=/usr/local/bin/memu-backup
unit=/etc/systemd/system/memu-backup.service
rules=/etc/udev/rules.d/99-memu-usb.rules
settings=/etc/memu-backup
state=/var/lib/memu-backup
here=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)

say() { printf '%s\n' "$*"; }
fail() { say "$1" >&2; exit "${2:-1}"; }
wrong() { fail "$1 To see what there is, type: deploy/install.sh --help" 2; }

# step WHAT SENTENCE COMMAND…: say what is done and do it; where it fails, end with the sentence.
step() {
    say "$1"
    sentence=$2
    shift 2
    if [ "$dry" = no ]; then
        "$@" || fail "$sentence"
    fi
}

systemd_runs() { [ -d /run/systemd/system ]; }
service_runs() { systemd_runs && systemctl --quiet is-active memu-backup; }
service_is() { systemd_runs && systemctl --quiet "$1" memu-backup 2>/dev/null; }

# --- install and upgrade ---------------------------------------------------------------------------------------------

look_first() {
    [ -f "$here/memu_backup/cli/__init__.py" ] ||
        fail "$here is not memu-backup's folder. Type this in the folder that git clone made: sudo deploy/install.sh"
    command -v systemctl >/dev/null ||
        fail "This machine has no systemd, which runs the service. docs/admin.md says how to run it in a container."
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
        fail "memu-backup needs Python 3.11 or newer, and python3 is older or not there. Debian 12 and newer have it: sudo apt install python3"
    if [ ! -e "$settings/config.toml" ] && [ -n "$home" ] && [ ! -d "$home" ]; then
        fail "$home is not there. Say in which folder $preset lives: sudo deploy/install.sh --preset $preset --home DIR" 2
    fi
    for file in "$command" "$unit" "$rules"; do
        [ ! -d "$file" ] || fail "$file is a folder, and a file of ours belongs there. Look what it is, and move it away."
    done
    if [ -e "$command" ] && ! is_ours "$command"; then
        fail "$command is there and is not ours. Look what it is, and move it away."
    fi
    if service_runs && backup_is_at_work; then
        fail "A backup is being made just now, and an upgrade would end it. Wait until it is done (memu-backup status), or stop the service first: sudo systemctl stop memu-backup" 75
    fi
}

is_ours() { case $(readlink "$1") in "$root"/*) ;; *) return 1 ;; esac; }

backup_is_at_work() {
    look='import json, sys; sys.exit(not any(job.get("in_progress") for job in json.load(sys.stdin).values()))'
    "$link/bin/memu-backup" status --json 2>/dev/null | "$link/bin/python" -c "$look" 2>/dev/null
}

have_venv() {
    if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
        package=$(python3 -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')
        [ "$packages" = yes ] ||
            fail "Python cannot make virtual environments yet. Type this, then the same again: sudo apt install $package"
        step "Installing the Debian package $package." \
            "apt could not install $package. Nothing else was changed. See what it says: sudo apt install $package" \
            install_package "$package"
    fi
}

install_package() {
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq && apt-get install -y -qq --no-install-recommends "$1" >/dev/null
}

one_at_a_time() {
    mkdir -p "$versions"
    exec 9>"$root/install.lock"
    flock -n 9 || fail "Another install.sh is at work. Wait until it has ended." 75
}

# What was never finished; it is in nobody's use.
sweep_half_made() {
    for folder in "$versions"/*/; do
        [ -e "$folder/finished" ] || rm -rf "$folder"
    done
}

build() {
    : >"$log"
    # pip leaves its litter beside what it builds, and takes over what lies there: give it a copy.
    mkdir -p "$new/source" &&
        cp -R "$here/memu_backup" "$here/pyproject.toml" "$here/README.md" "$new/source" &&
        find "$new/source" -name __pycache__ -prune -exec rm -rf {} + &&
        python3 -m venv "$new" >>"$log" 2>&1 &&
        "$new/bin/python" -m pip install --no-cache-dir --disable-pip-version-check --no-input \
            "$new/source" >>"$log" 2>&1 &&
        rm -rf "$new/source"
}

# On the disk before anything points to it: after a power cut there is the old version or the new one.
finish() { "$new/bin/memu-backup" --version >/dev/null && : >"$new/finished" && sync -f "$root"; }

point_to() { ln -sfn "$1" "$link.new" && mv -fT "$link.new" "$link"; }

put_unit() { { [ ! -e "$unit" ] || cp "$unit" "$new/unit-before"; } && put_by_rename "$here/deploy/memu-backup.service" "$unit"; }

# udev reads it by itself.
put_rules() { mkdir -p "${rules%/*}" && put_by_rename "$here/deploy/99-memu-usb.rules" "$rules"; }

put_by_rename() { cp "$1" "$2.new" && chmod 644 "$2.new" && mv -fT "$2.new" "$2"; }

first_settings() {
    { [ -d "$settings" ] || mkdir -m 700 "$settings"; } &&
        "$link/bin/memu-backup" init --preset "$preset" ${home:+--home "$home"} --to "$settings/config.toml"
}

sweep_older() {
    for folder in "$versions"/*/; do
        [ "${folder%/}" = "$(readlink "$link")" ] || rm -rf "$folder"
    done
}

go_back() {
    if [ -n "$before" ]; then
        say "The new version does not start; going back to the one before." >&2
        [ ! -e "$new/unit-before" ] || put_by_rename "$new/unit-before" "$unit"
        point_to "$before"
        systemctl daemon-reload
        if systemctl restart memu-backup; then
            rm -rf "$new"
            fail "The new version did not start, so the one before is at work again and backups go on. See why: journalctl -u memu-backup"
        fi
    fi
    fail "The service does not start, and no backup is made until it does. See why: sudo memu-backup check, and: journalctl -u memu-backup"
}

install_or_upgrade() {
    look_first
    have_venv
    before=$(readlink "$link" || :)
    new=$versions/$(date +%Y%m%d-%H%M%S)-$$
    if [ "$dry" = no ]; then
        one_at_a_time
        sweep_half_made
    fi
    step "Building it in $new; this takes a minute or two." \
        "The program could not be built, so nothing was changed. Is the internet reachable, is there room in /opt? What went wrong stands in $log. Then type the same again." \
        build
    step "Trying the new version." "The new version does not run, so nothing was changed. See why: $new/bin/memu-backup --version" finish
    if [ -d "$link" ] && [ ! -L "$link" ]; then
        step "Moving away $link, which was made by hand." "$link could not be moved. Move it away, then type the same again." \
            mv -T "$link" "$versions/by-hand-$$"
    fi
    step "Putting it in use: $link." "$link could not be written. Nothing else was changed; type the same again." point_to "$new"
    step "Making the command $command." "$command could not be made. Make it, then type the same again." \
        ln -sfn "$link/bin/memu-backup" "$command"
    if ! cmp -s "$here/deploy/memu-backup.service" "$unit"; then
        step "Writing the service $unit." "$unit could not be written. Mend that, then type the same again." \
            put_unit
    fi
    if ! cmp -s "$here/deploy/99-memu-usb.rules" "$rules"; then
        step "Writing $rules, which keeps desktops from drives for copies." \
            "$rules could not be written. Mend that, then type the same again." put_rules
    fi
    if systemd_runs; then
        step "Telling systemd." "systemd did not read its files. See why: systemctl daemon-reload" systemctl daemon-reload
    fi
    if [ -e "$settings/config.toml" ]; then
        say "Leaving the settings in $settings as they are."
    else
        say "Is this machine to become one that is lost? Then its settings are in the backup: docs/recovery.md"
        step "Looking for $preset, and writing first settings to $settings." \
            "The settings could not be written. The program is installed; type the same again, with --home DIR where $preset was not found." first_settings
    fi
    if service_runs; then
        say "Starting the service anew, with this version."
        [ "$dry" = yes ] || systemctl restart memu-backup || go_back
    fi
    [ "$dry" = yes ] || sweep_older
    say_what_next
}

left_to_do() { printf '  sudo %-40s # %s\n' "$1" "$2"; }

say_what_next() {
    if [ "$dry" = yes ]; then
        say "That is what would be done. Nothing was changed."
    elif service_runs; then
        say "$("$command" --version) is at work."
    else
        say "$("$command" --version) is installed. What is left to do:"
        if ! service_is is-enabled; then
            left_to_do "nano $settings/config.toml" "look at each line that says CHECK"
            left_to_do "memu-backup check" "each line is ok, or says what to do"
            left_to_do "memu-backup start" "the first backup, now"
        fi
        left_to_do "systemctl enable --now memu-backup" "and from now on each night"
    fi
}

# --- uninstall -------------------------------------------------------------------------------------------------------

uninstall() {
    [ "$purge" = no ] || look_before_purge
    if service_is is-active || service_is is-enabled; then
        step "Stopping the service." "The service did not stop, so nothing was removed. See why: systemctl status memu-backup" \
            systemctl disable --now memu-backup
    fi
    # Who stops services has to be there until they run again.
    if [ -n "$(find "$state/stopped" -name '*.json' 2>/dev/null)" ]; then
        fail "Services that a backup had stopped are not all running again, so nothing was removed. Bring them back first: sudo memu-backup services recover"
    fi
    for file in "$unit" "$rules"; do
        [ ! -e "$file" ] || step "Removing $file." "$file could not be removed." rm -f "$file"
    done
    if systemd_runs; then
        step "Telling systemd." "systemd did not read its files. See why: systemctl daemon-reload" systemctl daemon-reload
    fi
    if [ -L "$command" ] && is_ours "$command"; then
        step "Removing $command." "$command could not be removed." rm -f "$command"
    fi
    [ ! -e "$root" ] || step "Removing $root." "$root could not be removed. Type the same again." \
        rm -rf --one-file-system "$root"
    if [ "$purge" = yes ]; then
        for folder in "$settings" "$state" "$unit.d"; do
            [ ! -e "$folder" ] || step "Removing $folder." "$folder could not be removed. Type the same again." \
                rm -rf --one-file-system "$folder"
        done
    fi
    say_what_is_left
}

# Settings with a backup_dir of "./backups" keep them among the settings.
look_before_purge() {
    found=$(find "$settings" "$state" \( -name .memu-backup.json -o -name '*.tar.gz' \) 2>/dev/null | head -n 1)
    [ -z "$found" ] ||
        fail "Backups lie in $(dirname "$found"), and this removes none. Move that folder to another place, then type the same again."
    if [ "$yes" = no ] && [ "$dry" = no ]; then
        [ -t 0 ] || fail "--purge removes settings, the chat's keys and the history for good. Add --yes if that is meant." 2
        printf 'Remove the settings, the keys of the chat and the history for good? Backups stay. [y/N] '
        read -r answer
        case $answer in [yY]*) ;; *) fail "Nothing was removed." ;; esac
    fi
}

say_what_is_left() {
    if [ "$dry" = yes ]; then
        say "That is what would be done. Nothing was changed."
        return
    fi
    say "memu-backup is not installed any more. No backup was removed; any machine reads them with tar."
    for folder in "$settings" "$state"; do
        [ ! -e "$folder" ] || say "$folder was left as it is."
    done
}

# --- what was asked --------------------------------------------------------------------------------------------------

home="" preset=memu dry=no packages=no purge=no yes=no what=install home_given=no
while [ $# -gt 0 ]; do
    case $1 in
        --home)
            shift
            home=${1-} home_given=yes
            [ -n "$home" ] || wrong "--home needs a folder."
            ;;
        --preset)
            shift
            preset=${1-} home_given=yes
            [ -n "$preset" ] || wrong "--preset needs the name of a system, such as soundbox."
            ;;
        --with-packages) packages=yes ;;
        --uninstall) what=uninstall ;;
        --purge) purge=yes ;;
        --yes | -y) yes=yes ;;
        --dry-run) dry=yes ;;
        -h | --help)
            usage
            exit 0
            ;;
        *) wrong "There is no $1 here." ;;
    esac
    [ $# = 0 ] || shift
done
if [ $what = install ] && [ $purge = yes ]; then
    wrong "--purge removes; it goes with --uninstall."
fi
if [ $purge = no ] && [ $yes = yes ]; then
    wrong "--yes goes with --purge; nothing else asks."
fi
if [ $what = uninstall ] && [ "$home_given$packages" != nono ]; then
    wrong "--preset, --home and --with-packages are for installing, not for --uninstall."
fi
if [ "$dry" = no ] && [ "$(id -u)" != 0 ]; then
    fail "This changes the machine, so it has to be root. Type: sudo deploy/install.sh" 2
fi
if [ $what = install ]; then install_or_upgrade; else uninstall; fi
