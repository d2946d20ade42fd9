"""Frames on a terminal and in a log."""

import polars as pl

from trtkit.cli.output import make_frame_table, print_table


def test_a_frame_is_printed_whole(capsys):
    frame = pl.DataFrame(
        {
            "node": [f"/model.{place}/conv/Conv" for place in range(40)],
            "sqnr": [21.123456] * 40,
            "metric": [None, *[0.79243] * 39],
            "chosen": [True, *[False] * 39],
            "keep": [["a", "b"], *[[]] * 39],
            "macs": [1179648] * 40,
        },
        schema_overrides={"keep": pl.List(pl.String)},
    )
    print_table(make_frame_table(frame))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 41
    assert lines[0].split() == frame.columns
    assert lines[1].split() == ["/model.0/conv/Conv", "21.12", "-", "yes", "2", "1179648"]
    assert lines[40].split() == ["/model.39/conv/Conv", "21.12", "0.7924", "no", "0", "1179648"]
