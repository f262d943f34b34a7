"""Writes a student as a LiteRT file: one signature for each number of tokens, all on the same constants.

LiteRT plans its memory for fixed shapes, so a file holds the program once for each bucket of tokens
(``tokens_32``, ``tokens_64`` …); :mod:`~edgescribe.converters.export.litert_flatbuffer` stores the weights once
for all of them. :class:`LiteRtGraph` writes the program of one bucket. What it aims at is that everything but
the look-ups of embeddings and mask runs in one call of XNNPACK, with every linear layer on its int8 kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...errors import InputError
from ..anatomy import Anatomy, Shape, Task
from ..graph import ActivationKind
from ..quantized_weights import (
    FloatMatrix,
    Grid,
    QuantizedMatrix,
    QuantizedTable,
    QuantizedWeights,
    SiteGrids,
    bias_integers,
)
from .litert_flatbuffer import FlatbufferFile, Quantization, Subgraph, write_atomically

BUCKETS = (32, 64, 128, 256)
"""Numbers of tokens for which a file holds a signature unless others are asked for."""

PADDED = -1e4
"""Added to the scores of padding: far below any score, and its exponential is exactly 0 in float32."""


@dataclass(eq=False)
class Tensor:
    """A value of the graph, in the forms that its readers asked for, each computed once.

    ``real``: index of the float32 tensor; ``integers``: int8 tensors by grid; ``exact``: the grid of the int8 tensor
    that the value was computed as, whose dequantised integers are the value.
    """

    shape: tuple[int, ...]
    real: int | None = None
    integers: dict[Grid, int] = field(default_factory=dict)
    exact: Grid | None = None
    whole: Tensor | None = None
    part: int = 0
    parts: int = 1


class LiteRtGraph:
    """Writes one forward pass at batch 1 and ``tokens`` tokens; implements GraphBuilder.

    Args:
        file: the file that the subgraph joins.
        weights: the numbers.
        tokens: T, the fixed number of tokens.
        longest: the largest T of all graphs of the file; constants that depend on T are shared as slices of its.
    """

    training = False
    whole_layers = False
    FUSE = True

    def __init__(self, file: FlatbufferFile, weights: QuantizedWeights, tokens: int, longest: int | None = None) -> None:
        self.weights, self.tokens, self.longest = weights, tokens, longest or tokens
        self._graph: Subgraph = file.subgraph(f"tokens_{tokens}")
        self._inputs: dict[str, int] = {}
        self._outputs: dict[str, int] = {}
        self._once: dict[Any, Any] = {}

    def finish(self) -> None:
        """Close the graph as the signature ``tokens_<T>``."""
        self._graph.finish(f"tokens_{self.tokens}", self._inputs, self._outputs)

    # Inputs and outputs
    def _input(self, name: str) -> Tensor:
        if name not in self._inputs:
            self._inputs[name] = self._graph.tensor(name, (1, self.tokens), "int32")
        return self._cached(("input", name), lambda: Tensor((1, self.tokens), self._inputs[name]))

    def token_ids(self) -> Tensor:
        """See GraphBuilder."""
        return self._input("input_ids")

    def token_mask(self) -> Tensor:
        """See GraphBuilder."""
        return self._input("attention_mask")

    def token_types(self) -> Tensor:
        """See GraphBuilder."""
        return self._input("token_type_ids")

    def output(self, name: str, value: Tensor) -> None:
        """See GraphBuilder."""
        self._outputs[name] = self._real(value)

    # Forms of a value
    def _cached(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._once:
            self._once[key] = make()
        return self._once[key]

    def _real(self, value: Tensor) -> int:
        """The value as a float32 tensor."""
        if value.real is None:
            if value.whole is not None:
                self._split(value.whole)
                if value.real is not None:
                    return value.real
            assert value.exact is not None
            source = value.integers[value.exact]
            value.real = self._graph.tensor("real", value.shape, "float32")
            self._graph.operator("DEQUANTIZE", [source], [value.real], version=2)
        return value.real

    def _split(self, whole):
        def make():
            shape=(*whole.shape[:-1], whole.shape[-1]//whole.parts)
            if whole.exact is not None:
                q=_per_tensor(whole.exact)
                outs=[self._graph.tensor("part",shape,"int8",q) for _ in range(whole.parts)]
                src=whole.integers[whole.exact]
            else:
                outs=[self._graph.tensor("part",shape,"float32") for _ in range(whole.parts)]
                src=whole.real
            axis=self._graph.constant("axis",np.array(len(shape)-1,np.int32))
            self._graph.operator("SPLIT",[axis,src],outs,version=2 if whole.exact else 1,options_type="SplitOptions",numSplits=whole.parts)
            return outs
        outs=self._cached(("split",whole),make)
        for p in whole.children:
            if whole.exact is not None: p.integers[whole.exact]=outs[p.part]
            else: p.real=outs[p.part]

    def _integers(self, value: Tensor, grid: Grid, name: str) -> int:
        """The value as an int8 tensor on ``grid``."""
        if value.whole is not None and not value.integers: self._split(value.whole)
        if grid not in value.integers:
            source = self._real(value)
            value.integers[grid] = self._graph.tensor(name, value.shape, "int8", _per_tensor(grid))
            self._graph.operator("QUANTIZE", [source], [value.integers[grid]])
        return value.integers[grid]

    def _apply(self, operator: str, inputs: Sequence[int], shape: tuple[int, ...], version: int = 1, **options: Any) -> int:
        result = self._graph.tensor(operator.lower(), shape, "float32")
        self._graph.operator(operator, inputs, [result], version, **options)
        return result

    def _ints(self, *v): return self._graph.constant("ints", np.array(v, np.int32))
    def _const(self, name, a): return self._graph.constant(name, np.asarray(a,np.float32))

    # Embeddings
    def embedding(self, ids: Tensor, table: str) -> Tensor:
        """See GraphBuilder."""
        rows = self.weights.tables[table]
        if isinstance(rows, QuantizedTable):
            w=rows.integers.shape[1]; shape=(*ids.shape,w)
            t=self._graph.constant(table, rows.integers, Quantization((1.0,),(0,)))
            r=self._graph.tensor("rows",shape,"int8",Quantization((1.0,),(0,)))
            self._graph.operator("GATHER",[t,ids.real],[r],2,options_type="GatherOptions",axis=0)
            s=self._const(table+"/scales", rows.scales.reshape(-1,1))
            sc=self._apply("GATHER",[s,ids.real],(*ids.shape,1),options_type="GatherOptions",axis=0)
            f=self._apply("DEQUANTIZE",[r],shape,2)
            return Tensor(shape,self._mul(f,sc,shape))
        t=self._const(table, rows)
        shape=(*ids.shape,rows.shape[1])
        return Tensor(shape,self._apply("GATHER",[t,ids.real],shape,options_type="GatherOptions",axis=0))

    def position_embedding(self, table: str, start: int = 0) -> Tensor:
        rows = self.weights.tables[table]
        if isinstance(rows, QuantizedTable): rows=rows.dequantized()
        a=rows[start:start+self.tokens][None]
        return Tensor(a.shape,self._const(table,a))

    def table_row(self, table: str, row: int) -> Tensor:
        rows = self.weights.tables[table]
        if isinstance(rows, QuantizedTable): rows=rows.dequantized()
        a=rows[row][None,None]
        return Tensor(a.shape,self._const(table,a))

    def mark_layer(self, x: Tensor, layer: int) -> None:
        """See GraphBuilder: nothing to write."""

    def _add(self,a,b,shape): return self._apply("ADD",[a,b],shape,options_type="AddOptions")
    def _sub(self,a,b,shape): return self._apply("SUB",[a,b],shape,options_type="SubOptions")
    def _mul(self,a,b,shape): return self._apply("MUL",[a,b],shape,options_type="MulOptions")
    # Layers
    def linear(self, x: Tensor, weight: str, site: str, activation: ActivationKind | None = None) -> Tensor:
        y=self._product(x,(weight,),site,activation=="relu")
        if activation in (None,"relu"): return y
        return self.activation(y,activation)

    def linears(self, x: Tensor, weights: tuple[str, ...], site: str) -> tuple[Tensor, ...]:
        if not self.FUSE:
            return tuple(self._product(x,(w,),site,False) for w in weights)
        whole=self._product(x,weights,site,False); whole.parts=len(weights)
        n=whole.shape[-1]//len(weights)
        whole.children=[Tensor((*whole.shape[:-1],n),whole=whole,part=i,parts=len(weights),exact=whole.exact) for i in range(len(weights))]
        return tuple(whole.children)

    def _product(self,x,names,site,relu):
        ms=[self.weights.matrices[n] for n in names]
        name=";".join(names)
        opts=dict(options_type="FullyConnectedOptions",keepNumDims=True,fusedActivationFunction=1 if relu else 0)
        if isinstance(ms[0],FloatMatrix):
            w=np.concatenate([m.weight for m in ms]); b=np.concatenate([m.bias if m.bias is not None else np.zeros(len(m.weight),np.float32) for m in ms])
            shape=(*x.shape[:-1],len(w))
            W=self._const(name,w); B=self._const(name+"/bias",b)
            return Tensor(shape,self._apply("FULLY_CONNECTED",[self._real(x),W,B],shape,2,**opts))
        w=np.concatenate([m.integers for m in ms]); s=np.concatenate([m.scales for m in ms])
        shape=(*x.shape[:-1],len(w))
        W=self._graph.constant(name,w,Quantization(tuple(s.tolist()),(0,)*len(s)))
        if site not in self.weights.sites:
            b=np.concatenate([m.bias if m.bias is not None else np.zeros(len(m.scales),np.float32) for m in ms])
            B=self._const(name+"/bias",b)
            return Tensor(shape,self._apply("FULLY_CONNECTED",[self._real(x),W,B],shape,9,asymmetricQuantizeInputs=True,**opts))
        g=self.weights.sites[site]
        b=np.concatenate([bias_integers(m,g.input) for m in ms])
        bs=s*np.float32(g.input.scale)
        B=self._graph.constant(name+"/bias",b,Quantization(tuple(bs.tolist()),(0,)*len(s)))
        o=self._graph.tensor(site+"/output",shape,"int8",_per_tensor(g.output))
        self._graph.operator("FULLY_CONNECTED",[self._integers(x,g.input,site+"/input"),W,B],[o],4,**opts)
        return Tensor(shape,None,{g.output:o},g.output)

    def layer_norm(self, x: Tensor, norm: str, eps: float, residual: Tensor | None = None) -> Tensor:
        shape=x.shape; s=self._real(x); one=(*shape[:-1],1)
        if residual is not None: s=self._add(s,self._real(residual),shape)
        m=self._apply("MEAN",[s,self._ints(len(shape)-1)],one,options_type="ReducerOptions",keepDims=True)
        d=self._sub(s,m,shape)
        q=self._mul(d,d,shape)
        v=self._apply("MEAN",[q,self._ints(len(shape)-1)],one,options_type="ReducerOptions",keepDims=True)
        v=self._add(v,self._const("eps",np.full(1,eps)),one)
        r=self._apply("RSQRT",[v],one)
        n=self._mul(d,r,shape)
        n=self._mul(n,self._const(norm+".weight",self.weights.vectors[norm+".weight"]),shape)
        n=self._add(n,self._const(norm+".bias",self.weights.vectors[norm+".bias"]),shape)
        return Tensor(shape,n)

    def activation(self, x: Tensor, kind: ActivationKind) -> Tensor:
        r=self._real(x)
        if kind in("gelu","gelu_tanh"): return Tensor(x.shape,self._apply("GELU",[r],x.shape,options_type="GeluOptions",approximate=kind!="gelu"))
        if kind=="silu": return Tensor(x.shape,self._mul(r,self._apply("LOGISTIC",[r],x.shape),x.shape))
        return Tensor(x.shape,self._apply(kind.upper(),[r],x.shape))

    def add(self, a: Tensor, b: Tensor) -> Tensor:
        shape=np.broadcast_shapes(a.shape,b.shape)
        return Tensor(shape,self._add(self._real(a),self._real(b),shape))

    def _heads(self, value, heads, dtype="float32", q=None, src=None):
        b,t,w=value.shape
        r=self._graph.tensor("split_heads",(b,t,heads,w//heads),dtype,q)
        self._graph.operator("RESHAPE",[src,self._ints(b,t,heads,w//heads)],[r])
        o=self._graph.tensor("heads_first",(b,heads,t,w//heads),dtype,q)
        self._graph.operator("TRANSPOSE",[r,self._ints(0,2,1,3)],[o],2 if q else 1)
        return o
    VARIANT="float"
    def _by_head(self,value,heads):
        def make():
            b,t,w=value.shape; shape=(b,heads,t,w//heads)
            if self.VARIANT=="int8" and value.exact is not None:
                if value.whole is not None and not value.integers: self._split(value.whole)
                o=self._heads(value,heads,"int8",_per_tensor(value.exact),value.integers[value.exact])
                return self._apply("DEQUANTIZE",[o],shape,2)
            if self.VARIANT=="group" and value.whole is not None:
                outs=self._group(value.whole,heads)
                return outs[value.part]
            return self._heads(value,heads,src=self._real(value))
        return self._cached(("heads",value),make)
    def _group(self,whole,heads):
        def make():
            b,t,w=whole.shape; n=heads*whole.parts; d=w//n
            if whole.exact is not None:
                o=self._heads(whole,n,"int8",_per_tensor(whole.exact),whole.integers[whole.exact])
                o=self._apply("DEQUANTIZE",[o],(b,n,t,d),2)
            else: o=self._heads(whole,n,src=whole.real)
            outs=[self._graph.tensor("part",(b,heads,t,d),"float32") for _ in range(whole.parts)]
            axis=self._graph.constant("axis",np.array(1,np.int32))
            self._graph.operator("SPLIT",[axis,o],outs,options_type="SplitOptions",numSplits=whole.parts)
            return outs
        return self._cached(("group",whole),make)

    def attention(self, query, key, value, mask, heads, bias=None, scale=None):
        b,tq,w=query.shape; tk=key.shape[1]; d=w//heads
        scale = d**-0.5 if scale is None else scale
        q=self._by_head(query,heads); k=self._by_head(key,heads); v=self._by_head(value,heads)
        q=self._mul(q,self._const("scale",np.full(1,scale)),(b,heads,tq,d))
        s=self._apply("BATCH_MATMUL",[q,k],(b,heads,tq,tk),options_type="BatchMatMulOptions",adjY=True)
        s=self._add(s,self._penalty(mask),(b,heads,tq,tk))
        p=self._apply("SOFTMAX",[s],(b,heads,tq,tk),options_type="SoftmaxOptions",beta=1.0)
        c=self._apply("BATCH_MATMUL",[p,v],(b,heads,tq,d),options_type="BatchMatMulOptions")
        c=self._apply("TRANSPOSE",[c,self._ints(0,2,1,3)],(b,tq,heads,d))
        return Tensor(query.shape,self._apply("RESHAPE",[c,self._ints(*query.shape)],query.shape))
    def _penalty(self,mask):
        def make():
            m=self._apply("GATHER",[self._const("penalty",np.array([PADDED,0.0])),mask.real],(1,self.tokens),options_type="GatherOptions",axis=0)
            return self._apply("RESHAPE",[m,self._ints(1,1,1,self.tokens)],(1,1,1,self.tokens))
        return self._cached(("penalty",mask),make)
    def token(self, x, index):
        shape=(x.shape[0],1,x.shape[2])
        return Tensor(shape,self._apply("SLICE",[self._real(x),self._ints(0,0 if index==0 else x.shape[1]-1,0),self._ints(*shape)],shape))
    def squeeze_token(self, x):
        shape=(x.shape[0],x.shape[2])
        return Tensor(shape,self._apply("RESHAPE",[self._real(x),self._ints(*shape)],shape))


def _per_tensor(grid: Grid) -> Quantization:
    return Quantization((grid.scale,), (grid.zero_point,))


def export_litert(anatomy, shape, task, weights, path, buckets=BUCKETS, graph=LiteRtGraph):
    file = FlatbufferFile("edgescribe")
    for tokens in buckets:
        g = graph(file, weights, tokens, max(buckets))
        anatomy.forward(g, shape, task)
        g.finish()
    write_atomically(path, file.to_bytes())
