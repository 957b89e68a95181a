//! Which layers bear a smaller cache, and what is best within a budget of bytes.
//!
//! The KL divergence of a whole model is nearly the sum of what each layer costs alone, as long as all of it is small:
//! the errors of layers are hardly correlated, and the divergence is quadratic in them. So each layer is measured by
//! itself, and the sum is made least.
//!
//! - [`LayerProbe`]: measures what one layer's rows cost, while all other layers lose nothing.
//! - `stored`: what a row reads as.
//! - [`choose`]: the choice of least cost within a budget.

mod choose;
mod probe;
mod stored;

pub use choose::{Choice, choose};
pub use probe::{LayerProbe, ProbeError, ReadPrompt};
