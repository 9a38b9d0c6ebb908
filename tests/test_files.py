"""Files that a kill does not tear."""

import pytest

from s2s_jax.files import append_line, read_json, replacing, whole_lines, write_json


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "some.json"
    write_json(path, {"word": "größer"})
    assert read_json(path) == {"word": "größer"}
    assert "größer".encode() in path.read_bytes()
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(path, {"word": object()})

    def killed():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        killed()
    assert read_json(path) == {"word": "größer"}
    assert list(tmp_path.iterdir()) == [path]


def test_lines_behind_a_torn_one_are_kept(tmp_path):
    path = tmp_path / "some.jsonl"
    assert whole_lines(path) == []
    append_line(path, {"step": 1})
    with path.open("a") as file:
        file.write('{"step": 2')
    append_line(path, {"step": 3})
    with pytest.warns(UserWarning, match="some.jsonl:2: passed over, not a whole line"):
        assert whole_lines(path) == [{"step": 1}, {"step": 3}]
