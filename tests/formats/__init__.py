"""The format matrix: what strangers upload, against what the ffmpeg program shows."""
