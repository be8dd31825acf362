//! Where the compute thread's time goes.

/// What a stretch of time was spent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Work {
    /// Convolutions.
    Convolution,
    /// Linear layers.
    Linear,
    /// Attention, without its projections.
    Attention,
    /// Group and layer norms, with what is fused into them.
    Norm,
    /// Activations and sums of their own.
    Pointwise,
    /// Values brought to another place.
    Copy,
}

/// A stretch that ends when this is dropped.
#[derive(Debug)]
pub struct Span;

/// Begins a stretch of `work` on this thread.
pub fn span(_work: Work) -> Span {
    Span
}
