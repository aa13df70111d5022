//! Layers: parameters and the op that uses them.
//!
//! A layer takes its parameters from a [`Builder`], which names and fills them, and is differentiable
//! with respect to its input and its parameters.

use candle_core::Var;

use crate::Result;
use crate::op::conv2d::{Epilogue, Filter, Geometry};
use crate::op::group_norm::{Activation, Affine, Options};
use crate::op::{Joined, Output, conv2d, group_norm};
use crate::params::{Builder, Init, Kind};
use crate::tape::Node;

/// Groups of every norm, as in the reference's network.
pub const N_GROUPS: usize = 32;

/// How a layer's weights and bias start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Uniform up to `1 / sqrt(fan_in)`, weights and bias (PyTorch's default).
    Random,
    /// Zero, so that a residual branch adds nothing at first.
    Zero,
}

impl Start {
    fn init(self, fan_in: usize) -> Init {
        match self {
            Self::Random => Init::Uniform {
                bound: 1.0 / (fan_in as f64).sqrt(),
            },
            Self::Zero => Init::Zeros,
        }
    }
}

/// Sizes of a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvSize {
    /// Channels of the input.
    pub c_in: usize,
    /// Channels of the output.
    pub c_out: usize,
    /// Height and width of the filter, in pixels; odd.
    pub kernel: usize,
    /// Distance of two output positions in the input, in pixels; at least 1.
    pub stride: usize,
}

/// A convolution that pads by half its kernel, so that a stride of 1 keeps the size of the image.
#[derive(Debug)]
pub struct Conv2d {
    weight: Var,
    bias: Var,
    geometry: Geometry,
}

impl Conv2d {
    /// Creates `weight`, `[C_out, C_in, K, K]` in files, and `bias`, `[C_out]`.
    ///
    /// # Errors
    /// As [`Builder::param`].
    pub fn new(builder: &mut Builder<'_, '_>, size: ConvSize, start: Start) -> Result<Self> {
        let ConvSize {
            c_in,
            c_out,
            kernel,
            stride,
        } = size;
        let init = start.init(c_in * kernel * kernel);
        Ok(Self {
            weight: builder.param("weight", Kind::Conv2d, &[c_out, c_in, kernel, kernel], init)?,
            bias: builder.param("bias", Kind::Vector, &[c_out], init)?,
            geometry: Geometry {
                stride,
                padding: kernel / 2,
            },
        })
    }

    /// `[N, H, W, C_in]` to `[N, H', W', C_out]`, with `H' = ceil(H / stride)`.
    ///
    /// # Errors
    /// [`Error::Candle`](crate::Error::Candle) if `x` is not `[N, H, W, C_in]`, the stride is 0, or
    /// the padded image is smaller than the filter.
    pub fn forward(&self, x: impl Into<Joined>) -> Result<Node> {
        self.apply(x, Epilogue::To(Output::Whole))
    }

    /// [`Self::forward`] plus `residual`, which is shaped like its result.
    ///
    /// # Errors
    /// As for [`Self::forward`], and if `residual` has another shape.
    pub fn forward_onto(&self, x: &Node, residual: &Node) -> Result<Node> {
        self.apply(x, Epilogue::Onto(residual))
    }

    fn apply(&self, x: impl Into<Joined>, epilogue: Epilogue<'_>) -> Result<Node> {
        let x = x.into();
        let filter = Filter {
            weight: &x.tape().param(&self.weight),
            bias: &x.tape().param(&self.bias),
        };
        conv2d::conv2d(x, filter, self.geometry, epilogue)
    }
}

/// A linear layer over channels.
#[derive(Debug)]
pub struct Linear {
    weight: Var,
    bias: Var,
    output: Output,
}

impl Linear {
    /// Creates `weight`, `[C_out, C_in]` in files, and `bias`, `[C_out]`.
    ///
    /// # Errors
    /// As [`Builder::param`].
    pub fn new(
        builder: &mut Builder<'_, '_>,
        [c_in, c_out]: [usize; 2],
        start: Start,
    ) -> Result<Self> {
        let init = start.init(c_in);
        Ok(Self {
            weight: builder.param("weight", Kind::Linear, &[c_out, c_in], init)?,
            bias: builder.param("bias", Kind::Vector, &[c_out], init)?,
            output: Output::default(),
        })
    }

    /// The reference's 1-D convolution of width 1, which is the same thing with `weight`
    /// `[C_out, C_in, 1]` in files.
    ///
    /// # Errors
    /// As [`Builder::param`].
    pub fn new_conv1d(
        builder: &mut Builder<'_, '_>,
        [c_in, c_out]: [usize; 2],
        start: Start,
    ) -> Result<Self> {
        let init = start.init(c_in);
        Ok(Self {
            weight: builder.param("weight", Kind::Conv1d, &[c_out, c_in, 1], init)?,
            bias: builder.param("bias", Kind::Vector, &[c_out], init)?,
            output: Output::default(),
        })
    }

    /// The same, whose output only products read: see [`Output::ForProducts`]. A sum with a residual
    /// stays f32.
    #[must_use]
    pub fn for_products(self) -> Self {
        let output = Output::ForProducts;
        Self { output, ..self }
    }

    /// `[.., C_in]` to `[.., C_out]`.
    ///
    /// # Errors
    /// [`Error::Candle`](crate::Error::Candle) if the last axis of `x` is not `C_in`.
    pub fn forward(&self, x: &Node) -> Result<Node> {
        self.apply(x, None)
    }

    /// [`Self::forward`] plus `residual`, which is shaped like its result.
    ///
    /// # Errors
    /// As for [`Self::forward`], and if `residual` has another shape.
    pub fn forward_onto(&self, x: &Node, residual: &Node) -> Result<Node> {
        self.apply(x, Some(residual))
    }

    fn apply(&self, x: &Node, residual: Option<&Node>) -> Result<Node> {
        let filter = Filter {
            weight: &x.tape().param(&self.weight),
            bias: &x.tape().param(&self.bias),
        };
        let epilogue = residual.map_or(Epilogue::To(self.output), Epilogue::Onto);
        conv2d::linear(x, filter, epilogue)
    }
}

/// A group norm with learned scale and shift, over [`N_GROUPS`] groups of channels.
#[derive(Debug)]
pub struct GroupNorm {
    weight: Var,
    bias: Var,
    activation: Activation,
    output: Output,
}

impl GroupNorm {
    /// Creates `weight` (1) and `bias` (0), each `[C]`; `channels` is a multiple of [`N_GROUPS`].
    ///
    /// # Errors
    /// As [`Builder::param`].
    pub fn new(
        builder: &mut Builder<'_, '_>,
        channels: usize,
        activation: Activation,
    ) -> Result<Self> {
        Ok(Self {
            weight: builder.param("weight", Kind::Vector, &[channels], Init::Ones)?,
            bias: builder.param("bias", Kind::Vector, &[channels], Init::Zeros)?,
            activation,
            output: Output::default(),
        })
    }

    /// The same, whose output only products read: see [`Output::ForProducts`].
    #[must_use]
    pub fn for_products(self) -> Self {
        let output = Output::ForProducts;
        Self { output, ..self }
    }

    /// `[N, H, W, C]` to the same.
    ///
    /// # Errors
    /// [`Error::Candle`](crate::Error::Candle) if `x` is not `[N, H, W, C]`, or C is not a multiple of
    /// [`N_GROUPS`].
    pub fn forward(&self, x: impl Into<Joined>) -> Result<Node> {
        self.apply(x, None)
    }

    /// The norm followed by `x (1 + scale) + shift`, in one op.
    ///
    /// # Shapes
    /// - `x`: `[N, H, W, C]`
    /// - `scale_shift`: `[N, 2 C]`, all scales, then all shifts
    /// - returns: like `x`
    ///
    /// # Errors
    /// As for [`Self::forward`], and if `scale_shift` is not `[N, 2 C]`.
    ///
    /// # Source
    /// Dhariwal and Nichol 2021, arXiv 2105.05233, section 3.1 (AdaGN).
    pub fn forward_conditioned(&self, x: impl Into<Joined>, scale_shift: &Node) -> Result<Node> {
        self.apply(x, Some(scale_shift))
    }

    fn apply(&self, x: impl Into<Joined>, scale_shift: Option<&Node>) -> Result<Node> {
        let x = x.into();
        let affine = Affine {
            weight: &x.tape().param(&self.weight),
            bias: &x.tape().param(&self.bias),
            scale_shift,
        };
        let options = Options {
            n_groups: N_GROUPS,
            activation: self.activation,
            output: self.output,
        };
        group_norm::group_norm(x, affine, options)
    }
}
