#!/bin/sh
# Builds the services' image, and runs podman on it, without a daemon and without privileges.
#
#     scripts/image.sh build                 as deploy/Dockerfile says, with these variables:
#         IMAGE=name                         what the image is called (localhost/cliprerank-streamer:latest)
#         VARIANT=cpu|cuda                   cpu where PyTorch's own index can be reached, and else cuda
#         BASE=image                         a base from a registry, by its digest; without it, one is made of Debian's
#                                            packages, as apt on this machine is set up to find them
#         REBASE=1                           makes that base anew, with the updates since; it is kept otherwise
#     scripts/image.sh podman ARGUMENT...    where the image was built
#     scripts/image.sh remove                removes all images, and the user where this has made one
#
# Started by root, all of it runs as an ordinary user of its own (streamer-image), whose home holds the images; started
# by anyone else, as that one. Only installing what is missing needs root.
set -eu
cd "$(dirname "$0")/.."

IMAGE=${IMAGE:-localhost/cliprerank-streamer:latest}
LOCAL_BASE=localhost/streamer-base:latest
COMMANDS="buildah podman crun mmdebstrap newuidmap"
PACKAGES="buildah podman crun mmdebstrap uidmap ca-certificates"
# What the base holds beside Debian's essential packages. libstdc++6 is torch's.
INCLUDED=ca-certificates,libstdc++6,netbase,passwd,python3-venv,tzdata

case "${BASE:-@sha256:}" in
  *@sha256:*) ;;
  *) echo "BASE=$BASE names no digest (@sha256:...), and a tag may name another image tomorrow" >&2; exit 1 ;;
esac

missing() {
  for each in $COMMANDS; do command -v "$each" >/dev/null || echo "$each"; done
}

if [ -n "$(missing)" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  apt-get update -qq
  # shellcheck disable=SC2086 # a list
  DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends $PACKAGES >/dev/null
fi
if [ -n "$(missing)" ]; then
  echo "the image needs $(missing | tr '\n' ' ')on the PATH; on Debian, as root: apt-get install $PACKAGES" >&2
  exit 1
fi

if [ "$(id -u)" = 0 ]; then
  user=streamer-image home=/var/lib/streamer-image
  id "$user" >/dev/null 2>&1 || useradd --create-home --home-dir "$home" --shell /usr/sbin/nologin "$user"
  # A range of user ids of its own, for the users inside.
  grep -q "^$user:" /etc/subuid || usermod --add-subuids 1000000000-1000065535 --add-subgids 1000000000-1000065535 "$user"
else
  user=$(id -un) home=$HOME
fi
if ! grep -q "^$user:" /etc/subuid; then
  echo "the image needs a range of user ids for $user; as root: usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $user" >&2
  exit 1
fi
# shellcheck disable=SC2174 # home exists
as_user() {
  if [ "$(id -u)" != 0 ]; then
    "$@"
    return
  fi
  install -d -m 700 -o "$user" -g "$user" "$home/run"
  # Where version 1 of cgroups has most controllers and version 2 the others, crun refuses to run: it is shown version 2.
  hide=true
  ! grep -qs . /sys/fs/cgroup/unified/cgroup.controllers || hide="mount -t cgroup2 none /sys/fs/cgroup"
  # Nothing of root's environment, but for the way out of this machine. Without the name of the storage driver, these
  # versions take one that copies all of an image for each of its layers.
  unshare --mount sh -ec "$hide"'; exec "$@"' sh \
    setpriv --reuid "$user" --regid "$user" --init-groups --reset-env \
    env HOME="$home" XDG_RUNTIME_DIR="$home/run" STORAGE_DRIVER=overlay \
    ${http_proxy:+"http_proxy=$http_proxy"} ${https_proxy:+"https_proxy=$https_proxy"} ${no_proxy:+"no_proxy=$no_proxy"} \
    sh -c 'cd && exec "$@"' sh "$@"
}

# No systemd and no session is needed: podman is told to ask neither.
podman() {
  as_user podman --log-level error --runtime crun --cgroup-manager cgroupfs --events-backend file "$@"
}

# Debian's part of apt's sources on this machine, one a line.
debian_sources() {
  apt-get indextargets --format '$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)' 'Created-By: Packages' |
    awk -F '|' '$1 == "Debian" { print "deb", $2, $3, $4 }' | sort -u
}

make_base() {
  sources=$(debian_sources)
  if [ -z "$sources" ] && [ "$(id -u)" = 0 ]; then
    apt-get update -qq
    sources=$(debian_sources)
  fi
  if [ -z "$sources" ]; then
    echo "apt knows no Debian archive on this machine; give a base from a registry: BASE=python:3.11.13-slim-bookworm@sha256:..." >&2
    exit 1
  fi
  codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
  echo "making a base of Debian $codename" >&2
  apt-config dump | grep -E '^Acquire::(https?|Check-|Retries)' >"$work/apt.conf" || true
  echo "$sources" | as_user mmdebstrap --quiet --mode=unshare --variant=essential --include="$INCLUDED" \
    --aptopt="$work/apt.conf" \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    --customize-hook='rm -rf "$1"/etc/apt/sources.list* "$1"/etc/apt/apt.conf.d/99mmdebstrap "$1"/etc/resolv.conf "$1"/etc/hostname' \
    "$codename" - - >"$work/base.tar"
  podman import --quiet --change 'ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
    "$work/base.tar" "$LOCAL_BASE" >/dev/null
}

# The machine's package index as files that the build mounts and does not keep: uv's variables, pip's, pip's
# configuration, uv's; one index for both.
index_files() {
  index=${UV_DEFAULT_INDEX:-${UV_INDEX_URL:-${PIP_INDEX_URL:-$(python3 -m pip config get global.index-url 2>/dev/null || true)}}}
  {
    echo "[global]"
    [ -z "$index" ] || echo "index-url = $index"
  } >"$work/pip.conf"
  if [ -n "$index" ]; then
    printf '[[index]]\nurl = "%s"\ndefault = true\n' "$index"
  elif [ -e /etc/uv/uv.toml ]; then
    cat /etc/uv/uv.toml
  fi >"$work/uv.toml"
  cat "${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}" >"$work/ca.crt"
}

builds() {
  as_user buildah build --isolation chroot --network host --format docker --layers \
    --ignorefile "$work/context/deploy/Dockerfile.dockerignore" --file "$work/context/deploy/Dockerfile" \
    --secret id=pip,src="$work/pip.conf" --secret id=uv,src="$work/uv.toml" --secret id=ca,src="$work/ca.crt" \
    --build-arg PYTHON="$BASE" "$@" "$work/context"
}

build() {
  umask 022
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  chmod 755 "$work"
  mkdir "$work/context"
  # The user may not be able to read this folder.
  tar -c --exclude=__pycache__ deploy LICENSE README.md pyproject.toml requirements streamer topics | tar -x -C "$work/context"
  index_files
  if [ -z "${BASE:-}" ]; then
    BASE=$LOCAL_BASE
    if [ -n "${REBASE:-}" ] || ! podman image exists "$BASE"; then make_base; fi
  fi
  chmod -R go+rX "$work/context"
  if [ -z "${VARIANT:-}" ]; then
    VARIANT=cpu
    builds --target build >&2
    if ! builds --target probe-cpu >"$work/probe.log" 2>&1; then
      VARIANT=cuda
      echo "PyTorch's own index, which has it without CUDA, cannot be reached: building VARIANT=cuda, which also runs on CPUs" >&2
      grep -i error "$work/probe.log" | head -n 1 >&2 || true
    fi
  fi
  builds --build-arg VARIANT="$VARIANT" --tag "$IMAGE" >&2
  podman image inspect --format '{{.Size}}' "$IMAGE" |
    awk -v image="$IMAGE" -v variant="$VARIANT" '{ printf "%s (%s): %.2f GB\n", image, variant, $1 / 1e9 }'
}

case "${1:-}" in
  build) build ;;
  podman) shift; podman "$@" ;;
  remove)
    podman system reset --force
    podman system migrate  # ends the process that keeps the user's namespace
    [ "$(id -u)" != 0 ] || userdel --remove "$user"
    ;;
  *) sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0" >&2; exit 2 ;;
esac
