# Shared by the recipes; sourced, never run.
# shellcheck shell=bash disable=SC2154 # `work` is of the caller

# Unpacks Debian packages, without configuring them, into $work/root: enough to run a server. From
# sid, the only suite that has MySQL. Dates are not checked: a mirror or this machine's clock may be frozen.
debian_rootfs() {
  need_root_and_apt "no image of the server, and it cannot be built here"
  apt_ensure mmdebstrap:mmdebstrap
  nice mmdebstrap --quiet --variant=extract --include="dash,coreutils,$1" \
    --aptopt='Acquire::Check-Date "false"' sid "$work/root" ||
    die "mmdebstrap could not unpack $1"
  local dir root=$work/root
  for dir in bin sbin lib lib64; do [ -e "$root/$dir" ] || ln -s "usr/$dir" "$root/$dir"; done
  ln -sf dash "$root/usr/bin/sh"
  mkdir -p "$root"/{run,proc,sys,tmp}
  rm -rf "$root"/usr/share/{doc,man,locale,perl} "$root"/usr/lib/*/{perl,perl-base,gconv,libperl.so*} \
    "$root"/var/{cache,lib/dpkg} "$root"/etc/{apt,hostname,resolv.conf}
  echo 'root:x:0:0:root:/:/bin/sh' >"$root/etc/passwd"
}
