//! Where recent keys are kept dense: in an extra input and output of each layer, or in the tail of the buffer that
//! past and present share.

use super::error::RewriteError;
use super::options::{Options, RecentIn};

/// Default number of recent keys in a GenAI folder: more improve little, and cost time.
pub const RECENT_OF_FOLDERS: usize = 64;

/// Largest size or number that a rewritten model may state: products of a few of them do not overflow.
pub const MOST: usize = 1 << 20;

/// Number of recent keys that are kept dense, in inputs or in the buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Recent {
    pub(super) inputs: usize,
    pub(super) buffer: usize,
}

impl Recent {
    /// The recent keys that `options` ask for, in a GenAI `folder` or not; `gains`: some keys lose something;
    /// `shares_buffer`: past and present may be one buffer.
    ///
    /// # Errors
    /// The model or its host has no such place, or there are too many keys.
    pub(super) fn new(options: &Options, gains: bool, folder: bool, shares_buffer: bool) -> Result<Self, RewriteError> {
        let in_buffer = match options.recent_in {
            RecentIn::Auto => folder,
            RecentIn::Buffer => true,
            RecentIn::Inputs => false,
        };
        let count =
            options.recent.unwrap_or(if folder && in_buffer && shares_buffer && gains { RECENT_OF_FOLDERS } else { 0 });
        if count > MOST {
            return Err(RewriteError::option("recent", format!("{count} is too many: {MOST} at most")));
        }
        if folder && !in_buffer && count > 0 {
            let problem = "GenAI feeds no inputs but the caches it knows; --recent-in buffer needs none";
            return Err(RewriteError::option("recent_in", problem));
        }
        if in_buffer && !shares_buffer && count > 0 {
            let problem = "past and present can share a buffer only where attention is given its lengths, as \
                           GroupQueryAttention is; this model's is not";
            return Err(RewriteError::option("recent_in", problem));
        }
        Ok(match in_buffer {
            true => Self { inputs: 0, buffer: count },
            false => Self { inputs: count, buffer: 0 },
        })
    }
}
