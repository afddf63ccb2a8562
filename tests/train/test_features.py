"""Which inner tensors are compared, and how."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import torch

from edgekit.graph import Graph
from edgekit.prune.apply import apply
from edgekit.prune.groups import find_groups
from edgekit.prune.plan import make_plan
from edgekit.train.features import Adapters, Pair, find_pairs

NET = """<ir_version: 10, opset_import: ["" : 21]>
g (float[1,3,16,16] x, float[{w},3,3,3] w1, float[{w},{w},3,3] w2, float[4,{w},1,1] w3) => (float[1,4] y) {{
    a = Conv <pads=[1,1,1,1]> (x, w1)
    b = Relu (a)
    c = Conv <pads=[1,1,1,1], strides=[2,2]> (b, w2)
    d = Relu (c)
    e = MaxPool <kernel_shape=[2,2], strides=[2,2]> (d)
    f = Conv (e, w3)
    p = GlobalAveragePool (f)
    y = Flatten (p)
}}"""


def net(width: int) -> Graph:
    model = onnx.parser.parse_model(NET.format(w=width))
    return Graph(ir.from_proto(onnx.shape_inference.infer_shapes(model, strict_mode=True)))


def test_the_last_tensor_of_each_resolution_is_compared() -> None:
    pairs = find_pairs(net(6), net(8))
    assert [(p.name, p.student, p.teacher) for p in pairs] == [("b", 6, 8), ("d", 6, 8), ("f", 4, 4)]
    assert [p.needs_adapter for p in pairs] == [True, True, False]


def test_a_residual_sum_stands_for_a_widened_map_that_was_cut() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[1,3,8,8] x, float[4,3,1,1] w0, float[4,4,1,1] w1, float[{w},4,1,1] w2, float[5,{w},3,3] w3)
    => (float[1,5] y) {
        a = Conv (x, w0) b = Conv (a, w1) s = Add (a, b) h = Conv (s, w2)
        d = Conv <strides=[2,2]> (h, w3) p = GlobalAveragePool (d) y = Flatten (p)
    }"""

    def build(width: int) -> Graph:
        model = onnx.parser.parse_model(text.replace("{w}", str(width)))
        return Graph(ir.from_proto(onnx.shape_inference.infer_shapes(model, strict_mode=True)))

    assert [p.name for p in find_pairs(build(6), build(12))] == ["s", "d"]
    assert [p.name for p in find_pairs(build(12), build(12))] == ["h", "d"]


def test_thinning_keeps_the_last() -> None:
    assert [p.name for p in find_pairs(net(6), net(6), most=2)] == ["d", "f"]
    assert [p.name for p in find_pairs(net(6), net(6), most=1)] == ["f"]
    assert find_pairs(net(6), net(6), most=0) == ()


def test_residual_sums_of_a_transformer_are_compared_but_not_outputs() -> None:
    text = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[1,4,8] x, float[8] bias) => (float[1,4,8] y) {
        a = Relu (x) s = Add (x, a) t = Add (s, bias) y = Add (t, s)
    }"""
    model = onnx.shape_inference.infer_shapes(onnx.parser.parse_model(text))
    model.graph.input.pop()
    model.graph.initializer.append(onnx.helper.make_tensor("bias", 1, [8], [0.0] * 8))
    graph = Graph(ir.from_proto(model))
    assert [p.name for p in find_pairs(graph, graph)] == ["s"]


def test_a_map_recovers_channels_that_are_mixed() -> None:
    torch.manual_seed(0)
    adapters = Adapters([Pair("t", 1, 3, 5)])
    mine = torch.randn(4, 3, 6, 6)
    goal = torch.einsum("oc,nchw->nohw", torch.randn(5, 3), mine) + torch.randn(5)[:, None, None]
    before = float(adapters.loss({"t": mine}, {"t": goal}).detach())
    adapters.fit({"t": mine}, {"t": goal})
    after = float(adapters.loss({"t": mine}, {"t": goal}).detach())
    assert before > 0.5
    assert after < 1e-4


def test_a_plan_picks_the_teachers_channels() -> None:
    model = onnx.parser.parse_model(NET.format(w=8))
    for weight in list(model.graph.input)[1:]:
        shape = [d.dim_value for d in weight.type.tensor_type.shape.dim]
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float32), weight.name))
        model.graph.input.remove(weight)
    teacher = Graph(ir.from_proto(onnx.shape_inference.infer_shapes(model, strict_mode=True)))
    groups = find_groups(teacher)
    plan = make_plan(teacher, groups, {groups.groups[0].name: [0, 2, 3, 4, 6, 7]})
    pair = find_pairs(apply(teacher, plan), teacher, plan=plan)[0]
    assert pair.kept == (0, 2, 3, 4, 6, 7)
    assert not pair.needs_adapter
    goal = torch.randn(2, 8, 4, 4)
    mine = goal[:, list(pair.kept)]
    assert float(Adapters([pair]).loss({"b": mine}, {"b": goal})) == 0
