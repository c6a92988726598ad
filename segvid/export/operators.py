"""What a file of a stranger may compute with: functions of tensors, numbers, lists and texts that touch nothing else.

Of the namespace aten: public functions, which check what they are given. Not among them: what reads or writes files
(save, from_file), or takes memory as it lies (set_, as_strided, functions with _ in front in general).
Of the interpreter of TorchScript (prim): no Python functions; what is called is in the file, and looked at itself.
"""

TENSORS = """
abs abs_ absolute acos acosh adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
adaptive_max_pool2d adaptive_max_pool3d add add_ addbmm addcdiv addcmul addmm addmv all alpha_dropout amax amin
aminmax any arange argmax argmin argsort asin asinh atan atan2 atanh avg_pool1d avg_pool2d avg_pool3d baddbmm
batch_norm bernoulli bernoulli_ bilinear bitwise_and bitwise_not bitwise_or bitwise_xor bmm broadcast_tensors
broadcast_to bucketize cat ceil ceil_ celu channel_shuffle chunk clamp clamp_ clamp_max clamp_max_ clamp_min
clamp_min_ clip clone column_stack concat constant_pad_nd contiguous conv1d conv2d conv3d conv_transpose1d
conv_transpose2d conv_transpose3d convolution copysign cos cosh cosine_similarity cross cummax cummin cumprod cumsum
deg2rad detach detach_ diag diag_embed diagonal diff dim div div_ divide dot dropout dropout_ dstack einsum elu elu_
empty empty_like eq erf erfc erfinv exp exp_ expand expand_as expm1 eye feature_dropout feature_dropout_ fft_fft
fft_fft2 fft_fftfreq fft_fftn fft_fftshift fft_ifft fft_ifft2 fft_ifftn fft_ifftshift fft_irfft fft_irfft2 fft_irfftn
fft_rfft fft_rfft2 fft_rfftfreq fft_rfftn fill fill_ flatten flip fliplr flipud float_power floor floor_ floor_divide
floordiv fmax fmin fmod frac full full_like gather ge gelu glu greater greater_equal grid_sampler grid_sampler_2d
grid_sampler_3d group_norm gt hardshrink hardsigmoid hardsigmoid_ hardswish hardswish_ hardtanh hardtanh_ heaviside
hstack hypot im2col imag index index_add index_copy index_fill index_put index_put_ index_select instance_norm inverse
is_complex is_floating_point isclose isfinite isinf isnan isneginf isposinf item kthvalue layer_norm le leaky_relu
leaky_relu_ lerp less less_equal lift_fresh lift_fresh_copy linalg_cross linalg_det linalg_inv linalg_matrix_norm
linalg_norm linalg_qr linalg_solve linalg_svd linalg_vector_norm linear linspace log log10 log1p log2 log_sigmoid
log_softmax logaddexp logaddexp2 logical_and logical_not logical_or logical_xor logit logspace logsumexp lt
masked_fill masked_fill_ masked_scatter masked_select matmul max max_pool1d max_pool2d max_pool2d_with_indices
max_pool3d maximum mean median meshgrid min minimum mish mish_ mm moveaxis movedim msort mul mul_ multiply mv
nan_to_num nansum narrow native_batch_norm native_group_norm native_layer_norm ne neg neg_ negative new_empty new_full
new_ones new_zeros nonzero nonzero_numpy norm not_equal numel one_hot ones ones_like outer pad permute pinverse
pixel_shuffle pixel_unshuffle polar pow pow_ prelu prod rad2deg rand rand_like ravel real reciprocal reflection_pad1d
reflection_pad2d reflection_pad3d relu relu6 relu6_ relu_ remainder renorm repeat repeat_interleave replication_pad1d
replication_pad2d replication_pad3d reshape reshape_as resolve_conj resolve_neg rms_norm roll rot90 round rsqrt rsub
scalar_tensor scaled_dot_product_attention scatter scatter_add scatter_reduce searchsorted select select_scatter selu
selu_ sgn sigmoid sigmoid_ sign signbit silu silu_ sin sinc sinh size slice slice_scatter softmax softplus softshrink
sort split split_with_sizes sqrt square squeeze stack std std_mean stride sub sub_ subtract sum swapaxes swapdims t
take take_along_dim tan tanh tanh_ tensor tensor_split tensordot threshold threshold_ tile to topk trace transpose
tril triu true_divide trunc type_as unbind unflatten unfold unsafe_chunk unsafe_split unsqueeze upsample_bicubic2d
upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d
var var_mean view view_as vstack where xlogy zero_ zeros zeros_like
_assert_scalar _assert_tensor_metadata _convolution _log_softmax _native_batch_norm_legit_no_training _shape_as_tensor
_softmax _to_copy _unsafe_view _upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_lanczos2d_aa
_upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d
sym_constrain_range sym_constrain_range_for_size sym_is_contiguous sym_numel sym_size sym_stride sym_storage_offset
"""

TEXTS_AND_LISTS = """
Bool Complex Float FloatImplicit Int IntImplicit ScalarImplicit __and__ __contains__ __derive_index __getitem__ __is__
__isnot__ __lshift__ __not__ __or__ __range_length __rshift__ __xor__ _set_item append copy cpu dict endswith extend
find format get insert items join keys len list lower percentFormat pop replace is_grad_enabled requires_grad_ reverse
set_grad_enabled setdefault startswith str strip upper values warn
"""

INTERPRETER = """
CallFunction CallMethod Constant CreateObject DictConstruct Enter Exit GetAttr If ListConstruct ListUnpack Loop
NumToTensor RaiseException SetAttr TupleConstruct TupleIndex TupleSlice TupleUnpack Uninitialized abs device dtype
is_cuda itemsize layout max min name requires_grad unchecked_cast unchecked_unwrap_optional
"""

NUMBERS_OF_PYTHON = "add and_ eq floordiv ge gt le lt mod mul ne neg or_ pos pow sub truediv"

ATEN = frozenset((TENSORS + TEXTS_AND_LISTS).split())
PRIM = frozenset(INTERPRETER.split())
NUMBERS = (  # in torch.export
    frozenset(f"_operator.{name}" for name in NUMBERS_OF_PYTHON.split())
    | {f"torch.sym_{name}" for name in ("float", "int", "ite", "max", "min", "not", "sum")}
    | {f"math.{name}" for name in ("ceil", "floor", "trunc")}
)
