"""What the entry promises: bindings, notes, refusals, fixed scales, float inputs and outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgekit.passes.edit import add_constant
from edgekit.quantize.scheme import Scheme
from edgekit.tflite.lower.lower import lower
from edgekit.tflite.lower.refuse import RefusedNodesError
from edgekit.tflite.model import DType
from edgekit.tflite.split import split

UNSIGNED = Scheme.model_validate({"activation": "uint8", "ops": {"Conv": {"weight_axis": 0}}})


def tensor_of(lowered: Any, name: str) -> Any:
    return lowered.model.tensors[name]


def operators(lowered: Any, op: str) -> list[Any]:
    return [o for o in lowered.model.operators if o.op == op]


def test_images_enter_as_nhwc_and_results_stay_so(net: Any, int8: Any) -> None:
    n = net()
    parts = split(int8(n.graph(n.conv(n.input(1, 3, 8, 10), 3, 6))))
    lowered = lower(parts.body)
    (given,), (made,) = lowered.inputs, lowered.outputs
    assert (given.shape, given.axes, given.dtype, given.logical) == (
        (1, 8, 10, 3),
        (0, 2, 3, 1),
        DType.INT8,
        (1, 3, 8, 10),
    )
    assert (made.shape, made.axes, made.flat) == ((1, 6, 8, 6), (0, 2, 3, 1), False)
    assert parts.inputs[0].quantization is not None
    assert given.scale == float(parts.inputs[0].quantization.scale[0])
    assert lowered.model.inputs == {given.name: given.tensor}
    assert lowered.notes == ()


def test_sequences_and_plain_vectors_enter_as_they_are(net: Any) -> None:
    n = net()
    x = n.op("MatMul", n.input(1, 6, 4), n.const(np.ones((4, 5))))
    (given,) = lower(n.graph(x)).inputs
    assert (given.shape, given.axes, given.flat) == ((1, 6, 4), (0, 1, 2), True)


def test_an_image_that_is_stored_last_in_onnx_is_not_turned(net: Any) -> None:
    n = net()
    x = n.op("Transpose", n.input(1, 8, 10, 3), perm=[0, 3, 1, 2])
    lowered = lower(n.graph(n.conv(x, 3, 6)))
    assert lowered.inputs[0].axes == (0, 1, 2, 3)
    assert "TRANSPOSE" not in lowered.model.counts()


def test_a_flattened_output_tells_the_order_of_its_elements(net: Any, agree: Any) -> None:
    n = net()
    found = agree(n.graph(n.op("Flatten", n.conv(n.input(1, 3, 6, 7), 3, 4))))
    (made,) = found.lowered.outputs
    assert not made.flat
    assert made.logical == (1, 4 * 4 * 5)
    assert found.steps < 1e-6
    assert "TRANSPOSE" not in found.counts


def test_a_tensor_is_transposed_once_for_all_readers(net: Any, agree: Any) -> None:
    n = net()
    x = n.conv(n.input(1, 4, 6, 6), 4, 4)
    rows = [
        n.op("Softmax", x, axis=2),
        n.op("Softmax", n.op("Neg", n.op("Neg", x)), axis=2),
        n.op("Softmax", x, axis=2),
    ]
    found = agree(n.graph(n.op("Add", n.op("Add", rows[0], rows[2]), rows[1])))
    assert found.counts["TRANSPOSE"] == 2
    assert {note.node for note in found.lowered.notes} == {"Softmax_1", "Softmax_4"}


def test_the_bias_has_exactly_the_product_of_the_scales(net: Any, int8: Any) -> None:
    n = net()
    lowered = lower(split(int8(n.graph(n.conv(n.input(1, 3, 8, 8), 3, 6)))).body)
    (conv,) = operators(lowered, "CONV_2D")
    x, weight, bias = (tensor_of(lowered, t) for t in conv.inputs)
    assert np.array_equal(bias.quantization.scale, weight.quantization.scale * x.quantization.scale[0])
    assert (bias.dtype, weight.quantization.axis, weight.shape) == (DType.INT32, 0, (6, 3, 3, 3))


def test_a_convolution_without_a_bias_gets_zeros(net: Any, agree: Any) -> None:
    n = net()
    x = n.op("Conv", n.input(1, 3, 8, 8), n.const(n.rng.normal(0, 1, (4, 3, 3, 3))))
    found = agree(n.graph(x))
    (conv,) = operators(found.lowered, "CONV_2D")
    assert not tensor_of(found.lowered, conv.inputs[2]).data.any()


@pytest.mark.parametrize(
    ("low", "high", "name"), [(0.0, 6.0, "RELU6"), (-1.0, 1.0, "RELU_N1_TO_1"), (0.0, None, "RELU")]
)
def test_activations_are_absorbed(low: float, high: float | None, name: str, net: Any, int8: Any) -> None:
    n = net()
    x = n.conv(n.input(1, 3, 8, 8), 3, 16)
    x = n.op("Relu", x) if high is None else n.op("Clip", x, n.const(low), n.const(high))
    lowered = lower(split(int8(n.graph(n.conv(x, 16, 4)))).body)
    first = operators(lowered, "CONV_2D")[0]
    assert first.options["fusedActivationFunction"] == name
    assert lowered.model.counts() == {"CONV_2D": 2}


def test_a_clip_at_the_ends_of_the_codes_costs_nothing(net: Any, int8: Any, agree: Any) -> None:
    n = net()
    x = n.op("Clip", n.conv(n.input(1, 3, 8, 8), 3, 16), n.const(-0.3), n.const(0.4))
    found = agree(int8(n.graph(n.conv(x, 16, 4))))
    assert found.counts == {"CONV_2D": 2}
    assert found.steps <= 1


def test_float_networks_clip_by_minimum_and_maximum(net: Any, agree: Any) -> None:
    n = net()
    x = n.op("Clip", n.conv(n.input(1, 3, 8, 8), 3, 16), n.const(-0.3), n.const(0.4))
    found = agree(n.graph(x))
    assert found.counts == {"CONV_2D": 1, "MAXIMUM": 1, "MINIMUM": 1}
    assert found.steps < 1e-6


def requantized(graph: Any, tensor: str, factor: float) -> Any:
    """The graph with another scale for one activation."""
    copy = graph.copy()
    for node in copy.nodes:
        if node.name in (f"{tensor}_QuantizeLinear", f"{tensor}_DequantizeLinear"):
            old = node.inputs[1].const_value.numpy()
            label = f"{node.name}_scale"
            node.replace_input_with(
                1, add_constant(copy.model.graph, label, np.asarray(old * factor, np.float32))
            )
    return copy


def test_a_sigmoid_of_another_scale_is_requantized_and_noted(net: Any, int8: Any, agree: Any) -> None:
    n = net()
    x = n.conv(n.input(1, 3, 8, 8), 3, 16)
    gate = n.op("Sigmoid", x)
    graph = int8(n.graph(n.conv(n.op("Mul", x, gate), 16, 4)))
    assert not lower(split(graph).body).notes
    found = agree(requantized(graph, gate, 1.25))
    (note,) = found.lowered.notes
    assert (note.op, note.node) == ("QUANTIZE", "Sigmoid_1")
    assert found.steps <= 2
    logistic = operators(found.lowered, "LOGISTIC")[0].outputs[0]
    fixed = tensor_of(found.lowered, logistic).quantization
    assert (float(fixed.scale[0]), int(fixed.zero_point[0])) == (1 / 256, -128)


def test_pieces_of_other_scales_are_requantized_before_they_are_joined(
    net: Any, int8: Any, agree: Any
) -> None:
    n = net()
    x = n.input(1, 3, 8, 8)
    a, b = n.conv(x, 3, 4), n.conv(x, 3, 4)
    graph = int8(n.graph(n.conv(n.op("Concat", a, b, axis=1), 8, 8)))
    found = agree(requantized(graph, a, 0.8))
    assert [(note.op, note.node) for note in found.lowered.notes] == [("QUANTIZE", "Concat_2")]
    assert found.steps <= 2


def test_float_inputs_and_outputs(net: Any, int8: Any, agree: Any) -> None:
    n = net()
    graph = int8(n.graph(n.conv(n.input(1, 3, 8, 8), 3, 6)))
    found = agree(graph, io="float")
    assert found.counts == {"CONV_2D": 1, "DEQUANTIZE": 1, "QUANTIZE": 1}
    assert {b.dtype for b in (*found.lowered.inputs, *found.lowered.outputs)} == {DType.FLOAT32}
    assert found.steps < 0.02


def test_every_refused_node_is_named_with_rule_and_remedy(net: Any) -> None:
    n = net()
    x = n.conv(n.input(1, 4, 8, 8), 4, 4)
    x = n.op("Erf", x)
    x = n.op("MaxPool", x, kernel_shape=[2, 2], dilations=[2, 2])
    x = n.op("Resize", x, "", n.const([1, 1, 2, 2]), mode="cubic")
    with pytest.raises(RefusedNodesError) as caught:
        lower(n.graph(x))
    assert [node.op for node in caught.value.nodes] == ["Erf", "MaxPool", "Resize"]
    assert all(node.node and node.rule and node.remedy for node in caught.value.nodes)
    assert "dilated" in str(caught.value)


def test_volumes_are_refused(net: Any) -> None:
    n = net()
    with pytest.raises(RefusedNodesError, match="rank 5"):
        lower(n.graph(n.conv(n.input(1, 2, 6, 6, 6), 2, 2, (3, 3, 3))))


def test_kernels_that_do_not_exist_for_16_bits_are_refused(net: Any, int8: Any) -> None:
    n = net()
    graph = int8(n.graph(n.conv(n.op("HardSwish", n.conv(n.input(1, 3, 8, 8), 3, 16)), 16, 4)))
    wide = graph.copy()
    for node in wide.nodes:
        zero = node.inputs[2] if len(node.inputs) > 2 else None
        if zero is not None and zero.const_value is not None and zero.shape.rank() == 0:
            zero.const_value = ir.tensor(np.int16(0), name=zero.name)
    with pytest.raises(RefusedNodesError, match="HARD_SWISH has no int16 kernel"):
        lower(split(wide).body)


def test_the_same_graph_gives_the_same_model(net: Any, int8: Any) -> None:
    pytest.importorskip("ai_edge_litert")
    from edgekit.tflite.write import write_model

    n = net()
    x = n.conv(n.input(1, 3, 8, 8), 3, 8)
    graph = int8(n.graph(n.conv(n.op("Mul", x, n.op("Sigmoid", x)), 8, 4)))
    assert write_model(lower(split(graph).body).model) == write_model(lower(split(graph).body).model)


def test_channels_are_permuted_in_the_weights_for_depth_to_space(net: Any, agree: Any) -> None:
    n = net()
    x = n.op("LeakyRelu", n.conv(n.input(1, 3, 8, 8), 3, 16), alpha=0.1)
    found = agree(n.graph(n.op("DepthToSpace", x, blocksize=2, mode="CRD")))
    assert found.counts == {"CONV_2D": 1, "DEPTH_TO_SPACE": 1, "LEAKY_RELU": 1}
    assert found.steps < 1e-6


def test_rows_of_a_stored_table_are_looked_up(net: Any, int8: Any, agree: Any) -> None:
    n = net()
    ids = n.input(1, 6, name="ids", kind=7)
    x = n.op("Gather", n.const(n.rng.normal(0, 1, (5, 16))), ids)
    x = n.op("MatMul", x, n.const(n.rng.normal(0, 1, (16, 4))))
    graph = int8(n.graph(x))
    assert split(graph).front is None
    found = agree(graph)
    assert found.lowered.inputs[0].dtype is DType.INT32
    assert found.counts == {"FULLY_CONNECTED": 1, "GATHER": 1}
    assert found.steps <= 1


def test_an_expanded_operand_is_left_to_the_broadcast(net: Any, agree: Any) -> None:
    n = net()
    x = n.conv(n.input(1, 4, 6, 6), 4, 4, pads=[1, 1, 1, 1])
    wide = n.op("Expand", n.op("GlobalAveragePool", x), n.ints(1, 4, 6, 6))
    found = agree(n.graph(n.op("Mul", x, wide)))
    assert found.counts == {"CONV_2D": 1, "MEAN": 1, "MUL": 1}
    assert found.steps < 1e-6


def test_unsigned_codes_are_told_as_signed_ones(net: Any, agree: Any, int8: Any) -> None:
    n = net()
    graph = n.graph(n.conv(n.input(1, 3, 8, 8), 3, 6, pads=[1, 1, 1, 1]))
    signed, unsigned = int8(graph), int8(graph, scheme=UNSIGNED)
    one, other = (lower(split(g).body) for g in (signed, unsigned))
    assert other.inputs[0].dtype is DType.INT8
    assert other.inputs[0].zero_point == one.inputs[0].zero_point
    assert agree(unsigned).steps <= 1


def test_another_format_between_two_nodes_is_a_quantize(net: Any, int8: Any, agree: Any) -> None:
    n = net()
    graph = int8(n.graph(n.conv(n.op("Relu", n.conv(n.input(1, 3, 8, 8), 3, 8)), 8, 4)))
    copy = graph.copy()
    last = [node for node in copy.nodes if node.op_type == "Conv"][-1]
    source = last.inputs[0]
    assert source is not None
    main = copy.model.graph
    scale = add_constant(main, "wide_scale", np.array(1 / 4096, np.float32))
    zero = add_constant(main, "wide_zero", np.array(0, np.int16))
    up = ir.node("QuantizeLinear", [source, scale, zero], name="up")
    down = ir.node("DequantizeLinear", [up.outputs[0], scale, zero], name="down")
    for value, kind in ((up.outputs[0], ir.DataType.INT16), (down.outputs[0], ir.DataType.FLOAT)):
        value.shape, value.type = source.shape, ir.TensorType(kind)
    up.outputs[0].name, down.outputs[0].name = "wide_codes", "wide"
    main.insert_before(last, [up, down])
    last.replace_input_with(0, down.outputs[0])
    for node in copy.nodes:
        if node.op_type == "QuantizeLinear" and node.inputs[0] is last.outputs[0]:
            node.replace_input_with(2, zero)
            node.outputs[0].type = ir.TensorType(ir.DataType.INT16)
            reader = next(iter(node.outputs[0].consumers()))
            reader.replace_input_with(2, zero)
    found = agree(copy)
    assert found.counts == {"CONV_2D": 2, "QUANTIZE": 1}
    bias = operators(found.lowered, "CONV_2D")[1].inputs[2]
    assert tensor_of(found.lowered, bias).dtype is DType.INT64
    assert found.steps <= 2


def test_a_softmax_over_one_element_is_one(net: Any, agree: Any) -> None:
    n = net()
    x = n.conv(n.input(1, 3, 6, 6), 3, 4)
    found = agree(n.graph(n.op("Softmax", x, axis=0)))
    assert found.steps == 0
    assert "TRANSPOSE" not in found.counts


def test_readers_through_different_shapes_share_memory_not_orders(net: Any, agree: Any) -> None:
    n = net()
    x = n.op("Softmax", n.conv(n.input(1, 6, 4, 6), 6, 12, (1, 1)), axis=2)
    wide = n.op("Concat", x, n.op("Tanh", x), axis=3)
    y = n.op("Transpose", x, perm=[2, 3, 1, 0])
    product = n.op("MatMul", y, n.op("Transpose", n.op("Tanh", y), perm=[0, 1, 3, 2]))
    assert agree(n.graph(wide, product)).steps < 1e-5
