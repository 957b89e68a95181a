//! What one layer's rows cost, while all other layers lose nothing.

use std::ops::Range;

use super::stored::Stored;
use crate::eval::{LogitStore, Passage, divergence};
use crate::method::{MIN_OBSERVED, channel_scale};
use crate::rewrite::{Basis, Lossless, Rows};
use crate::runtime::{Canceller, Error, Model, Options, Sequence};

/// A model without loss, whose cache is changed between calls to what a layer's rows would read as. One session
/// measures all settings, and a prompt is read once for all of them: its attention is exact whatever the rows, so that
/// only they differ.
pub struct LayerProbe {
    model: Model,
    lossless: Stored,
    head_dim: usize,
    /// Each layer's query_saliency, which chooses the channels of decoded tokens, and its c.
    layers: Vec<LayerScales>,
    observed: Vec<String>,
    /// Tensors of a layer in a sequence.
    tensors: usize,
}

struct LayerScales {
    kv_heads: usize,
    saliency: Vec<f32>,
    scale: Vec<f32>,
    basis: Option<Basis>,
}

/// A prompt that was read, and how the model goes on without loss.
pub struct ReadPrompt<'p> {
    passage: &'p Passage,
    sequence: Sequence,
    /// n of the prompt in each layer, `[Hk * D]`.
    observed: Vec<Vec<f32>>,
    logits: LogitStore,
}

impl LayerProbe {
    /// Opens a model of [`Workbench::lossless`](crate::rewrite::Workbench::lossless).
    ///
    /// # Errors
    /// As [`Model::open`].
    pub fn open(lossless: &Lossless, options: &Options) -> Result<Self, Error> {
        let interface = &lossless.inspection.interface;
        let unsupported = |problem: String| Error::Unsupported { path: lossless.file.clone(), problem };
        let layers = interface.layers.iter().zip(&lossless.query_saliency).zip(&lossless.bases);
        let layers = layers.map(|((layer, saliency), basis)| LayerScales {
            kv_heads: layer.kv_heads,
            saliency: saliency.clone(),
            scale: saliency.iter().map(|&n| channel_scale(n)).collect(),
            basis: basis.clone(),
        });
        Ok(Self {
            model: Model::open(&lossless.file, interface, options)?,
            lossless: Stored::new(&lossless.rows).map_err(|e| unsupported(e.to_string()))?,
            head_dim: lossless.rows.head_dim,
            layers: layers.collect(),
            observed: lossless.observed_saliency.clone(),
            tensors: interface.pairs().count() / interface.layers.len(),
        })
    }

    /// Cancels calls of the model from another thread.
    pub fn canceller(&self) -> Canceller {
        self.model.canceller()
    }

    /// Reads a prompt, and the tokens after it for comparison.
    ///
    /// # Errors
    /// As [`Model::run`]; or the logits cannot be stored.
    pub fn read<'p>(&mut self, passage: &'p Passage) -> Result<ReadPrompt<'p>, ProbeError> {
        // Room for all tokens, where the model can share its buffers: rows are then changed in place.
        let mut sequence = self.model.start(Some(passage.prompt.len() + passage.next.len()))?;
        let names: Vec<&str> = self.observed.iter().map(String::as_str).collect();
        let found = self.model.run_with_outputs(&mut sequence, &passage.prompt, &names)?;
        let observed = found.iter().zip(&self.layers).map(|(n, layer)| match passage.prompt.len() < MIN_OBSERVED {
            true => layer.saliency.clone(),
            false => n.iter().copied().collect(),
        });
        let observed = observed.collect();
        let mut logits = LogitStore::new()?;
        let mut copy = sequence.copy()?;
        for pair in passage.next.windows(2) {
            logits.push(&self.model.run(&mut copy, &pair[..1])?)?;
        }
        Ok(ReadPrompt { passage, sequence, observed, logits })
    }

    /// KL divergence in nats of each prediction after the prompt from that without loss, if `layers` store `rows`. Rows
    /// in a basis have the planes that are best for each layer.
    ///
    /// # Errors
    /// As [`Model::run`]; or the logits cannot be read.
    pub fn divergences(
        &mut self,
        prompt: &ReadPrompt<'_>,
        layers: Range<usize>,
        rows: &Rows,
    ) -> Result<Vec<f64>, ProbeError> {
        let stored = layers.clone().map(|layer| {
            let basis = self.layers[layer].basis.as_ref();
            Stored::new(&basis.map_or(rows.clone(), |basis| rows.clone().with_planes(&basis.costs)))
        });
        let mut stored = stored.collect::<Result<Vec<_>, _>>().map_err(|e| {
            ProbeError::Model(Error::Unsupported { path: "the setting".into(), problem: e.to_string() })
        })?;
        let mut sequence = prompt.sequence.copy()?;
        for (layer, stored) in layers.clone().zip(&mut stored) {
            let tokens = 0..sequence.len();
            self.store(&mut sequence, layer, tokens, &prompt.observed[layer], stored)?;
        }
        let mut divergences = Vec::new();
        for (index, pair) in prompt.passage.next.windows(2).enumerate() {
            let logits = self.model.run(&mut sequence, &pair[..1])?;
            divergences.push(divergence(&prompt.logits.row(index)?, &logits));
            for (layer, stored) in layers.clone().zip(&mut stored) {
                let token = sequence.len() - 1..sequence.len();
                self.store(&mut sequence, layer, token, &self.layers[layer].saliency, stored)?;
            }
        }
        Ok(divergences)
    }

    /// Replaces the rows of these tokens by what `stored` rows read as; recent keys are dense beside them.
    fn store(
        &self,
        sequence: &mut Sequence,
        layer: usize,
        tokens: Range<usize>,
        saliency: &[f32],
        stored: &mut Stored,
    ) -> Result<(), Error> {
        let [key_bytes, value_bytes] = self.lossless.row_bytes();
        let scales = &self.layers[layer];
        let mut channels = vec![0.0; self.head_dim];
        for head in 0..scales.kv_heads {
            let place = head * self.head_dim..(head + 1) * self.head_dim;
            let basis = scales.basis.as_ref().filter(|_| stored.in_basis());
            let saliency = &basis.map_or(saliency, |basis| &basis.saliency)[place.clone()];
            let scale = &scales.scale[place];
            let keys = sequence.row_bytes_mut(layer * self.tensors, head, tokens.clone())?;
            for (position, row) in tokens.clone().zip(keys.chunks_exact_mut(key_bytes)) {
                self.lossless.read_key(row, &mut channels);
                basis.iter().for_each(|basis| basis.change(head, &mut channels));
                stored.key(&mut channels, saliency, scale, position);
                basis.iter().for_each(|basis| basis.restore(head, &mut channels));
                self.lossless.write_key(&channels, row);
            }
            let values = sequence.row_bytes_mut(layer * self.tensors + 1, head, tokens.clone())?;
            for row in values.chunks_exact_mut(value_bytes) {
                self.lossless.read_value(row, &mut channels);
                stored.value(&mut channels);
                self.lossless.write_value(&channels, row);
            }
        }
        Ok(())
    }
}

/// Why a measurement ended.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The model does not run, or was cancelled.
    #[error(transparent)]
    Model(#[from] Error),
    /// The original's predictions cannot be kept.
    #[error("the temporary file of logits")]
    Logits(#[from] std::io::Error),
}
