//! What `coordinator probe` makes of what workers measured: how far activations move between calls, and
//! how far that moves the image. Pure.

pub mod chart;
pub mod similarity;
pub mod sites;
