import os
import threading
import time
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from graphpass.validate.process.channel import (
    Channel,
    ChannelClosedError,
    ChannelTimeoutError,
    Value,
    decode,
    encode,
)


def through(value: Value) -> Value:
    blobs: list[Any] = []
    description = encode(value, blobs)
    return decode(description, [bytearray(blob.tobytes()) for blob in blobs])


@given(hnp.arrays(hnp.scalar_dtypes(), hnp.array_shapes(min_dims=0, min_side=0)))
def test_arrays_cross_to_the_bit(array: np.ndarray[Any, Any]) -> None:
    if array.dtype.kind in "mM" or not array.dtype.isnative:
        return
    result = through(array)
    assert isinstance(result, np.ndarray)
    assert (result.dtype, result.shape) == (array.dtype, array.shape)
    assert result.tobytes() == array.tobytes()


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn])
def test_floats_that_numpy_lacks_cross(dtype: Any) -> None:
    array = np.arange(4).astype(dtype)
    result = through(array)
    assert isinstance(result, np.ndarray)
    assert result.dtype == array.dtype
    assert result.tobytes() == array.tobytes()


def test_a_transposed_array_crosses_in_its_own_order() -> None:
    array = np.arange(6).reshape(2, 3).T
    np.testing.assert_array_equal(np.asarray(through(array)), array)


def test_strings_sequences_maps_and_nothing_cross() -> None:
    strings = np.array([["a", "ü"], ["", "节"]], dtype=object)
    assert np.asarray(through(strings)).tolist() == strings.tolist()
    sequence = through([np.array([1, 2], np.float32), None, []])
    assert isinstance(sequence, list)
    assert np.asarray(sequence[0]).tolist() == [1, 2]
    assert sequence[1:] == [None, []]
    assert through({"cat": 0.5, "dog": 0.25}) == {"cat": 0.5, "dog": 0.25}
    assert through({3: 0.5}) == {3: 0.5}


def pair() -> tuple[Channel, Channel]:
    (read_a, write_b), (read_b, write_a) = os.pipe(), os.pipe()
    return Channel(read_a, write_a), Channel(read_b, write_b)


@given(st.lists(st.binary(max_size=3), max_size=4))
def test_messages_arrive_in_order(blobs: list[bytes]) -> None:
    one, two = pair()
    one.send({"number": 1}, blobs)
    one.send({"number": 2})
    head, received = two.receive()
    assert (head, [bytes(blob) for blob in received]) == ({"number": 1}, blobs)
    assert two.receive() == ({"number": 2}, [])
    one.close()
    two.close()


def test_more_than_a_pipe_holds_crosses() -> None:
    one, two = pair()
    blob = np.random.default_rng(0).bytes(5 << 20)
    sender = threading.Thread(target=one.send, args=({}, [blob]))
    sender.start()
    assert two.receive()[1] == [blob]
    sender.join()
    one.close()
    two.close()


def test_silence_ends_at_the_deadline() -> None:
    one, two = pair()
    with pytest.raises(ChannelTimeoutError):
        two.receive(time.monotonic() + 0.05)
    with pytest.raises(ChannelTimeoutError):
        one.send({}, [bytes(5 << 20)], time.monotonic() + 0.05)
    one.close()
    two.close()


def test_the_other_end_may_go() -> None:
    one, two = pair()
    one.close()
    with pytest.raises(ChannelClosedError):
        two.receive()
    with pytest.raises(ChannelClosedError):
        two.send({"still": "there?"})
    two.close()
