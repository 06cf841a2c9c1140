"""MP4 files, opened again with PyAV and taken apart byte by byte."""

import itertools
import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.encoding import Encoding, frame_rate
from pipeline.errors import GenerationError
from pipeline.mux import Mp4Writer, cut, padded, provenance
from pipeline.types import Size

SIZE = Size(128, 96)
COMMENT = provenance(weights="demo weights", seed=42)
SAMPLE_RATE = 48_000


def moving(num_frames: int):
    t, rows, columns = np.mgrid[:num_frames, : SIZE.height, : SIZE.width]
    red, green, blue = (
        127 + 100 * np.sin((columns + 3 * t) / 9),
        127 + 100 * np.cos(rows / 7),
        (rows + columns + t) % 256,
    )
    return np.stack([red, green, blue], -1).astype(np.uint8)


def tone(seconds: float):
    samples = np.arange(round(seconds * SAMPLE_RATE))
    return np.stack([np.sin(samples * hertz * 2 * np.pi / SAMPLE_RATE) * 0.3 for hertz in (440, 660)]).astype(
        np.float32
    )


def writer(path: Path, *, fps: Fraction = Fraction(24), preset: str = "superfast", size: Size = SIZE) -> Mp4Writer:
    return Mp4Writer(path, size=size, fps=fps, encoding=Encoding(crf=18, preset=preset), comment=COMMENT)


def write(
    path: Path, *, num_frames: int = 17, fps: Fraction = Fraction(24), sound: float | None = None, **how
) -> None:
    with writer(path, fps=fps, **how) as mp4:
        for start in range(0, num_frames, 8):
            mp4.frames(moving(num_frames)[start : start + 8])
        if sound is not None:
            mp4.audio(tone(sound), sample_rate=SAMPLE_RATE)


def give_up(path: Path) -> None:
    with writer(path) as mp4:
        mp4.frames(moving(17))
        raise KeyboardInterrupt


def boxes(data: bytes) -> list[bytes]:
    found, at = [], 0
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        found.append(kind)
        at += length
    return found


def video_packets(path: Path) -> list[bytes]:
    with av.open(path) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


@pytest.mark.parametrize("fps", [24, 30000 / 1001, 23.976, 12.5, 1, 60, 7.3])
@pytest.mark.parametrize("num_frames", [1, 17])
def test_every_frame_is_there_at_its_exact_time(tmp_path, fps, num_frames):
    rate = frame_rate(fps)
    write(tmp_path / "clip.mp4", num_frames=num_frames, fps=rate, sound=num_frames / fps + 0.1)

    with av.open(tmp_path / "clip.mp4") as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        times = [frame.pts * frame.time_base for frame in container.decode(video)]
        assert times == [i / rate for i in range(num_frames)]
        assert video.average_rate == rate
        assert video.frames == num_frames
        assert video.duration * video.time_base == num_frames / rate
        assert num_frames / rate - Fraction(1, SAMPLE_RATE) < audio.duration * audio.time_base <= num_frames / rate


def test_the_frames_are_the_frames_that_were_given(tmp_path):
    write(tmp_path / "clip.mp4")

    with av.open(tmp_path / "clip.mp4") as container:
        luma = np.stack([frame.to_ndarray()[: SIZE.height] for frame in container.decode(video=0)]).astype(float)
    expected = 16 + moving(17) @ np.array([0.2126, 0.7152, 0.0722]) * 219 / 255
    assert np.abs(luma - expected).mean() < 2


@pytest.mark.parametrize("preset", ["superfast", "medium", "slow"])
def test_the_streams_are_what_every_browser_plays(tmp_path, preset):
    write(tmp_path / "clip.mp4", sound=1, preset=preset)

    with av.open(tmp_path / "clip.mp4") as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, video.profile, video.format.name) == ("h264", "High", "yuv420p")
        assert (video.width, video.height) == (SIZE.width, SIZE.height)
        assert (audio.codec_context.name, audio.rate, audio.layout.name) == ("aac", 48_000, "stereo")
        codec = video.codec_context
        assert (codec.color_primaries, codec.color_trc, codec.colorspace, codec.color_range) == (1, 1, 1, 1)
    assert b"colrnclx" + bytes([0, 1, 0, 1, 0, 1, 0]) in (tmp_path / "clip.mp4").read_bytes()


@pytest.mark.parametrize(
    "colour",
    [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (128, 64, 200), (255, 255, 0)],
)
def test_a_colour_comes_back_by_the_matrix_the_file_names(tmp_path, colour):
    with writer(tmp_path / "clip.mp4") as mp4:
        mp4.frames(np.broadcast_to(np.array(colour, np.uint8), (2, SIZE.height, SIZE.width, 3)))

    with av.open(tmp_path / "clip.mp4") as container:
        planes = next(container.decode(video=0)).to_ndarray().astype(float)
    y = (planes[: SIZE.height] - 16) / 219
    quarter = SIZE.height // 4
    cb, cr = ((planes[SIZE.height + i * quarter :][:quarter].mean() - 128) / 224 for i in (0, 1))
    red, blue = y + 1.5748 * cr, y + 1.8556 * cb
    green = (y - 0.2126 * red - 0.0722 * blue) / 0.7152
    assert np.abs(np.clip(np.stack([red, green, blue], -1) * 255, 0, 255) - colour).max() <= 2


def test_the_index_comes_before_the_frames(tmp_path):
    write(tmp_path / "clip.mp4", sound=1)

    kinds = boxes((tmp_path / "clip.mp4").read_bytes())
    assert kinds[0] == b"ftyp"
    assert kinds.index(b"moov") < kinds.index(b"mdat")


@pytest.mark.parametrize("sound_first", [True, False])
def test_sound_and_picture_lie_side_by_side_in_the_file(tmp_path, sound_first):
    with writer(tmp_path / "clip.mp4", fps=Fraction(4)) as mp4:
        if sound_first:
            mp4.audio(tone(20), sample_rate=SAMPLE_RATE)
        mp4.frames(moving(80))
        if not sound_first:
            mp4.audio(tone(20), sample_rate=SAMPLE_RATE)

    with av.open(tmp_path / "clip.mp4") as container:
        packets = sorted((p for p in container.demux() if p.size), key=lambda packet: packet.pos)
        placed = [(packet.dts * packet.time_base, packet.stream.type) for packet in packets]
    for kind in ("video", "audio"):
        latest = itertools.accumulate((time if of == kind else Fraction(0) for time, of in placed), max)
        assert all(time - seen < Fraction(3, 2) for (time, _), seen in zip(placed, latest, strict=True))


def test_the_file_says_that_a_machine_made_it(tmp_path):
    write(tmp_path / "clip.mp4")

    with av.open(tmp_path / "clip.mp4") as container:
        assert container.metadata["comment"] == COMMENT
    assert "Machine-made" in COMMENT
    assert "demo weights" in COMMENT
    assert "42" in COMMENT


def test_without_sound_there_is_no_audio_track_and_the_picture_is_the_same_to_the_bit(tmp_path):
    write(tmp_path / "silent.mp4")
    write(tmp_path / "sounding.mp4", sound=1)

    with av.open(tmp_path / "silent.mp4") as container:
        assert [stream.type for stream in container.streams] == ["video"]
    assert video_packets(tmp_path / "silent.mp4") == video_packets(tmp_path / "sounding.mp4")


def test_the_same_frames_and_sound_give_the_same_bytes(tmp_path):
    for name in ("one.mp4", "two.mp4"):
        write(tmp_path / name, num_frames=41, sound=3, preset="medium")

    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()


def test_how_the_frames_are_chunked_does_not_show(tmp_path):
    write(tmp_path / "eights.mp4", num_frames=25)
    with writer(tmp_path / "at once.mp4") as mp4:
        mp4.frames(moving(25))

    assert (tmp_path / "eights.mp4").read_bytes() == (tmp_path / "at once.mp4").read_bytes()


def test_sound_shorter_than_the_picture_keeps_its_length(tmp_path):
    write(tmp_path / "clip.mp4", num_frames=24, sound=0.5)

    with av.open(tmp_path / "clip.mp4") as container:
        audio = container.streams.audio[0]
        assert audio.duration * audio.time_base == Fraction(1, 2)


def test_the_sound_is_the_sound_that_was_given(tmp_path):
    write(tmp_path / "clip.mp4", num_frames=24, sound=1)

    with av.open(tmp_path / "clip.mp4") as container:
        heard = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)[:, :SAMPLE_RATE]
    assert np.abs(heard - tone(1))[:, 2000:-2000].mean() < 0.01


def test_a_cut_fades_to_silence():
    found = cut(np.ones((2, 1000), np.float32), samples=600, fade=100)

    assert found.shape == (2, 600)
    assert (found[:, :500] == 1).all()
    assert (np.diff(found[:, 500:]) < 0).all()
    assert (found[:, -1] == 0).all()


@pytest.mark.parametrize("samples", [600, 900])
def test_sound_that_fits_fades_out_too_and_keeps_its_length(samples):
    whole = np.full((2, 600), 0.5, np.float32)

    found = cut(whole, samples=samples, fade=100)
    assert found.shape == (2, 600)
    assert np.array_equal(found[:, :500], whole[:, :500])
    assert (np.diff(found[:, 500:]) < 0).all()
    assert (found[:, -1] == 0).all()


def test_sound_shorter_than_the_fade_is_all_fade():
    assert (np.diff(cut(np.ones((2, 5), np.float32), samples=9, fade=100)) < 0).all()


def test_sound_beyond_full_scale_is_clipped():
    assert np.array_equal(cut(np.array([[-3.0, 0.5, 3.0]], np.float32), samples=3, fade=0), [[-1, 0.5, 1]])


def test_the_waveform_of_the_caller_is_left_alone(tmp_path):
    sound, given = tone(3), tone(3)
    with writer(tmp_path / "clip.mp4") as mp4:
        mp4.frames(moving(17))
        mp4.audio(sound, sample_rate=SAMPLE_RATE)

    assert np.array_equal(sound, given)


def test_giving_up_leaves_nothing_behind(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        give_up(tmp_path / "clip.mp4")

    assert list(tmp_path.iterdir()) == []


def test_giving_up_keeps_the_file_that_was_there(tmp_path):
    (tmp_path / "clip.mp4").write_bytes(b"an earlier one")
    with pytest.raises(KeyboardInterrupt):
        give_up(tmp_path / "clip.mp4")

    assert (tmp_path / "clip.mp4").read_bytes() == b"an earlier one"


def test_the_file_is_not_there_before_it_is_whole(tmp_path):
    with writer(tmp_path / "clip.mp4") as mp4:
        mp4.frames(moving(17))
        assert not (tmp_path / "clip.mp4").exists()

    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_an_error_of_the_encoder_thread_surfaces_at_the_next_call(tmp_path):
    mp4 = writer(tmp_path / "clip.mp4")
    mp4.frames(np.zeros((1, 32, 32, 3), np.uint8))
    with pytest.raises(GenerationError, match=r"cannot be encoded.*\(32, 32, 3\)"):
        mp4.frames(moving(8))
    with pytest.raises(GenerationError, match="cannot be encoded"):
        mp4.__exit__(None, None, None)

    assert list(tmp_path.iterdir()) == []


def test_an_error_in_the_last_chunk_surfaces_when_the_block_ends(tmp_path):
    with (
        pytest.raises(GenerationError, match="cannot be encoded"),
        writer(tmp_path / "clip.mp4", preset="sloth") as mp4,
    ):
        mp4.frames(moving(8))

    assert list(tmp_path.iterdir()) == []


def test_sound_that_is_not_a_number_is_an_error_and_not_a_file(tmp_path):
    mp4 = writer(tmp_path / "clip.mp4")
    mp4.frames(moving(8))
    mp4.audio(np.full((2, 9000), np.nan), sample_rate=SAMPLE_RATE)
    with pytest.raises(GenerationError, match="cannot be written"):
        mp4.__exit__(None, None, None)

    assert list(tmp_path.iterdir()) == []


def test_a_clip_without_frames_is_an_error(tmp_path):
    with pytest.raises(GenerationError, match="no frames"), writer(tmp_path / "clip.mp4"):
        pass

    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(GenerationError, match="cannot be written"):
        writer(tmp_path / "nowhere" / "clip.mp4")


def test_a_path_that_is_taken_by_a_folder_is_an_error(tmp_path):
    (tmp_path / "clip.mp4").mkdir()
    with pytest.raises(GenerationError, match="cannot be written"):
        write(tmp_path / "clip.mp4")

    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_the_caller_goes_on_while_a_chunk_is_encoded(tmp_path):
    large = Size(1280, 704)
    noise = np.random.default_rng(0).integers(0, 256, (3, large.height, large.width, 3), np.uint8)
    with writer(tmp_path / "clip.mp4", size=large, preset="slow") as mp4:
        mp4.frames(noise)
        assert not mp4._pending.done()


def test_a_padded_sound_fades_out_and_is_silent_to_its_end():
    sound = np.ones((2, 100), np.float32)
    found = padded(sound, samples=150, fade=10)
    assert found.shape == (2, 150)
    assert np.all(found[:, :90] == 1)
    assert np.all(np.diff(found[0, 90:100]) < 0)
    assert np.all(found[:, 99:] == 0)
    assert np.all(sound == 1)


def test_a_sound_longer_than_its_padding_is_cut():
    assert padded(np.ones((2, 100), np.float32), samples=40, fade=10).shape == (2, 40)
