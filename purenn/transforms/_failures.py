"""What torch says where it refuses to transform a function, and what was wrong and what to do in each case."""

from purenn.errors import BatchingError, DeviceError, GradientError, MutationError, PurennError, TransformError

# What was wrong and what to do where a differentiated parameter is written to.
WRITTEN = (
    "the function writes in place into a parameter that is being differentiated",
    "Arguments are never changed: write `w = w + d` instead of `w.add_(d)` or `w += d`.",
)
# The same for a tensor that is no argument.
WRITTEN_OUTSIDE = (
    "the function writes in place into a tensor from outside of it",
    "Write `y = x + d` instead of `x.add_(d)`, and return what is to be kept.",
)
# The words in which torch speaks of tensors that are not dense, and what they mean.
LAYOUTS = (
    r"(Sparse|Nested|Mkldnn|Quantized)\w*' backend|Sparse CSR tensors do not|(Sparse|Opaque|Nested)TensorImpl|"
    r"(un|only )supported (memory format option|by strided tensors)|incompatible with mkldnn|mkldnn_\w+: |"
    r"(unsupported|not implemented) for [Ss]parse|expected layout Strided|[Qq]uantized (tensors|numbers|nyi)|"
    r"NestedTensor|SymIntArrayRef expected|broadcasting NT|shape_env must not be None"
)
NOT_DENSE = (
    "a tensor that is not dense (sparse, nested, quantized) is used where only dense ones can be",
    "Make it dense before: x.to_dense(), x.dequantize(), or torch.nested.to_padded_tensor(x, 0.0) with a mask.",
)
_KEYS = (
    "Draw from an explicit key: keys = pn.random.split(key, n), then vmap over the keys and use pn.random.normal, "
    "pn.random.bernoulli or a layer's key= option."
)
_INSTEAD = (
    "Use the layer of purenn.layers or the loss of purenn.losses for this operation, or write it in operations that "
    "have one."
)
# (what torch says, our exception, what was wrong, what to do)
KNOWN: tuple[tuple[str, type[PurennError], str, str], ...] = (
    (
        r"leaf Variable that requires grad (is being|has been) used in an in-place operation|"
        r"view of a leaf Variable that requires grad",
        MutationError,
        *WRITTEN,
    ),
    (
        r"vmap: It looks like you're .*(data-dependent control flow|calling \.item\(\) on a Tensor)",
        BatchingError,
        "the function asks for the value of a batched tensor (`if`, `while`, bool(), int() or .item())",
        "The value differs from example to example: use torch.where(condition, a, b), or keep the number as a tensor.",
    ),
    (
        r"vmap: called random operation while in randomness error mode",
        BatchingError,
        "the function draws from torch's global generator, which vmap cannot split among the examples",
        _KEYS,
    ),
    (
        r"do not support calling (out variants of )?random operations|do not yet support calling random operations|"
        r"does not currently support same randomness with a batched|different inplace randomness on an unbatched",
        BatchingError,
        "the function draws from torch's global generator in a way that vmap cannot split among the examples",
        _KEYS,
    ),
    (
        r"one_hot, please provide an explicit positive num_classes",
        BatchingError,
        "the number of classes of one_hot depends on values",
        "Write one_hot(x, num_classes).",
    ),
    (
        r"NYI: (querying is_contiguous|Tensor\.clone|Tensor\.contiguous)",
        BatchingError,
        "the function asks for a memory format, of which vmap knows the contiguous one only",
        "Leave memory_format out, and convert outside.",
    ),
    (
        r"required rank (?P<operation>\d) tensor to use channels_last",
        TransformError,
        "the function asks for a memory format of tensors with {operation} axes; under vmap the examples have one",
        "Leave memory_format out, and convert outside.",
    ),
    (
        r"Expected X\.is_contiguous\(memory_format\)",
        BatchingError,
        "torch's group normalisation takes no examples that share their memory, as those of x.expand do",
        "Use purenn.ops.group_norm or the layer GroupNorm, or pass x.contiguous().",
    ),
    (
        r"Calling Tensor\.as_strided is not supported",
        BatchingError,
        "the function uses as_strided on a tensor whose examples do not lie one after another in memory",
        "Use slices, unfold or reshape, or pass x.contiguous() with the batch axis in front.",
    ),
    (
        r"fallback path does not support vmap over dims of size 0",
        BatchingError,
        "there are no examples, and torch has no batching rule for an operation of the function, only a loop",
        "Call it for one example at least.",
    ),
    (
        r"escaped from inside a function being vmapped|"
        r"(level > batched_level|batched == nullptr) INTERNAL ASSERT",
        TransformError,
        "a tensor is used that an earlier vmap has left behind, in a global variable or an object's attribute",
        "Return what is to be kept.",
    ),
    (
        r"vmap: inplace arithmetic\(self, \*extra_args\) is not possible|"
        r"vmap: .* is not possible because there exists a Tensor|"
        r"output with shape .* doesn't match the broadcast shape",
        MutationError,
        "the function writes in place a value larger than its target (a batched value into a tensor that is not)",
        "Write `y = x + b` instead of `x.add_(b)`; a tensor to be filled must be made from a batched one.",
    ),
    (
        r"Cannot access data pointer of Tensor that doesn't have storage",
        BatchingError,
        "the function asks for the data of a batched tensor (.numpy(), .tolist() or a pointer)",
        "Compute with torch, and call numpy outside.",
    ),
    (
        r"vmap: We do not support batching operators that can (support|output) dynamic shape|"
        r"vmap: Attempted to vmap over `mask` in torch\.masked_select",
        BatchingError,
        "the shape of a result depends on values (a boolean mask as an index, nonzero, unique)",
        "It would differ from example to example: use torch.where(mask, x, 0), or a fixed number of results.",
    ),
    (
        r"Batch norm got a batched tensor as input while the running_mean or running_var",
        MutationError,
        "a batch normalisation writes its running statistics in place, which are the same for all examples",
        "Use purenn.layers.batch_norm, which returns new ones, or make the module pure with bridge.from_module.",
    ),
    (
        r"it must override the setup_context staticmethod",
        TransformError,
        "a torch.autograd.Function without setup_context cannot be transformed",
        "Give it one and generate_vmap_rule = True, or write the rule with pn.custom_vjp.",
    ),
    (
        r"You tried to vmap over (?P<operation>\w+), but it does not have vmap support",
        BatchingError,
        "the torch.autograd.Function {operation} has no batching rule",
        "Set its generate_vmap_rule = True, or write the rule with pn.custom_vjp.",
    ),
    (
        r"both generate_vmap_rule=True and an overridden vmap",
        TransformError,
        "a torch.autograd.Function has two batching rules, generate_vmap_rule = True and a vmap staticmethod",
        "Keep one of them.",
    ),
    (
        r"Expected the vmap staticmethod to have two returns|vmap staticmethod returned an incompatible",
        BatchingError,
        "the vmap staticmethod of a torch.autograd.Function returns something else than (output, out_dims)",
        "Return both, out_dims with an axis, or None, for each output; or set generate_vmap_rule = True.",
    ),
    (
        r"flat_bdims must not be None",
        GradientError,
        "a torch.autograd.Function has kept nothing for its jvp staticmethod",
        "Call ctx.save_for_forward in setup_context, with the same tensors as ctx.save_for_backward.",
    ),
    (
        r"Trying to set a forward gradient that has a different size|autograd_meta\.cpp",
        GradientError,
        "the jvp staticmethod of a torch.autograd.Function returns no tangent that looks like its output",
        "Return a tensor of the output's shape and dtype.",
    ),
    (
        r"You must implement either the backward or vjp method",
        GradientError,
        "a torch.autograd.Function has no derivative in reverse mode",
        "Give it a backward staticmethod, or write the rule with pn.custom_vjp.",
    ),
    (
        r"You must implement the jvp function for custom autograd\.Function",
        GradientError,
        "a torch.autograd.Function has no derivative in forward mode",
        "Give it a jvp staticmethod, write the rule with pn.custom_jvp, or use reverse mode (pn.vjp, pn.jacrev).",
    ),
    (
        r"Batching rule not implemented for (?P<operation>[\w:.]*\w)|"
        r"vmap: we do not yet support (?P<other>[\w:.]*\w)|"
        r"vmap over (?P<third>torch\.\w+) isn't supported yet|"
        r"(?P<fourth>[\w:]*\w) requires special handling, and does not yet have a batching rule",
        BatchingError,
        "torch has no batching rule for {operation}",
        _INSTEAD,
    ),
    (
        # What torch's derivatives do themselves, and a function may do as well: whose write it was cannot be told.
        r"has been modified by an inplace operation: .* output \d+ of (MaskedFill|AsStrided)",
        MutationError,
        "a value that the gradient needs is overwritten in place, by the function, or by torch's own derivative in "
        "forward mode of a norm, or of abs or sgn of complex numbers",
        "If the function writes nothing in place, take the derivatives in reverse mode alone (pn.grad, pn.jacrev).",
    ),
    (
        r"one of the variables needed for gradient computation has been modified by an inplace operation",
        MutationError,
        "the function overwrites in place a value that the gradient needs",
        "Write `y = f(x)` into a new name instead of changing x in place.",
    ),
    (
        r"is being modified inplace",
        MutationError,
        "the function writes in place into a view that autograd cannot follow (of unbind, split or chunk, or made "
        "under torch.no_grad)",
        "Make new values and put them together with torch.stack or torch.cat.",
    ),
    (
        r"attempted to call in-place operation .* that would mutate a captured Tensor",
        MutationError,
        *WRITTEN_OUTSIDE,
    ),
    (
        r"functions with out=\.\.\. arguments don't support automatic differentiation|"
        r"does not support it because it is an out= function",
        MutationError,
        "the function writes into a tensor by out=, which has no derivative",
        "Use the result of the call instead.",
    ),
    (
        r"You are attempting to call Tensor\.requires_grad_\(\)",
        TransformError,
        "the function calls requires_grad_() on a tensor that is being transformed",
        "Take derivatives within it with pn.grad or pn.vjp; they nest.",
    ),
    (
        r"backward\(\) called inside a functorch transform|"
        r"element 0 of tensors does not require grad and does not have a grad_fn",
        TransformError,
        "the function calls backward() or torch.autograd.grad, which see no tensor here that requires a gradient",
        "Take derivatives within it with pn.grad or pn.vjp; they nest.",
    ),
    (
        r"You are attempting to call Tensor\.retain_grad\(\)",
        TransformError,
        "the function calls retain_grad() on a tensor that is being transformed",
        "Gradients of intermediate values come from pn.perturb.",
    ),
    (
        r"mutating directly with `\.data`|accessing `data` under vmap|Can't detach views in-place",
        TransformError,
        "the function uses x.data, or detaches in place (x.detach_(), torch.tensor(x))",
        "Give the new value a name of its own: y = x + d, or y = x.detach().",
    ),
    (
        r"cannot resize variables that (require grad|has a forward grad)",
        MutationError,
        "the function resizes a tensor in place that is being differentiated",
        "Make a new one: x[:n], x.reshape(shape) or torch.cat.",
    ),
    (
        r"Cannot access storage of (BatchedTensorImpl|TensorWrapper)|"
        r"Only Tensors created explicitly by the user \(graph leaves\) support the deepcopy protocol",
        TransformError,
        "the function asks for the storage of a tensor that is being transformed (copy.deepcopy, pickle, torch.save)",
        "Copy by x.clone(); tensors are never changed here, so a copy is seldom needed.",
    ),
    (
        r"don't yet support saved tensor hooks|use_reentrant=True, torch.utils.checkpoint is incompatible",
        TransformError,
        "the function uses torch.utils.checkpoint, or other hooks of saved tensors, which torch.func does not know",
        "Recompute with pn.remat.",
    ),
    (
        r"Trying to use forward AD with (?P<operation>[\w:.]*\w) that does not support it",
        GradientError,
        "torch has no derivative in forward mode for {operation}",
        "Use reverse mode (pn.vjp, pn.jacrev; pn.jacrev(pn.grad(f)) is a Hessian), or write it in operations that have "
        "one.",
    ),
    (
        r"ZeroTensors are immutable",
        GradientError,
        "torch's derivative in forward mode of an operation fails where one of its arguments is constant",
        "Take it with pn.jvp, which knows the losses that do so, or use reverse mode (pn.vjp, pn.jacrev; "
        "pn.jacrev(pn.grad(f)) is a Hessian).",
    ),
    (
        r"Can't call numpy\(\) on Tensor that requires grad",
        GradientError,
        "the function asks for the data (.numpy()) of a tensor that is being differentiated",
        "Compute with torch; if there shall be no derivative, write x.detach().numpy().",
    ),
    (
        r"derivative for (?P<operation>[\w:.]*\w) is not implemented|"
        r"the derivative for '(?P<other>[\w:. ]*\w)' is not implemented|"
        r"derivative for '(?P<third>[\w:.]*\w)' is not implemented|"
        r"Trying to backward through (?P<fourth>[\w:.]*\w) but no autograd formula was registered",
        GradientError,
        "torch has no derivative for {operation}",
        _INSTEAD,
    ),
    (
        r"[Ii]nference tensor",
        GradientError,
        "a tensor was made under torch.inference_mode, where nothing can be differentiated later",
        "Make it under torch.no_grad, or pass x.clone().",
    ),
    (LAYOUTS, TransformError, *NOT_DENSE),
    (
        r"Expected all tensors to be on the same device|is not on the expected device|two different devices|"
        r"expected device \w+ but got|Cannot copy out of meta tensor|cannot be called on meta tensors",
        DeviceError,
        "tensors of different devices meet, or some of the device meta, which have no values",
        "Put all on one device: pn.tree.to(p, device=x.device).",
    ),
    (
        r"unction (?P<operation>\w+?)(Generated)?Backward returned an (invalid gradient|incorrect number of gradients)",
        GradientError,
        "the backward staticmethod of the torch.autograd.Function {operation} does not return a gradient of its shape "
        "for each argument",
        "Return as many as forward has arguments, None for those that have none.",
    ),
)
