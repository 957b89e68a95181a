//! Attributes of the operators, validated as far as they can be without shapes.

use super::CallError;
use crate::format::{Bits, KeyLayout, LayoutError, Planes, RowFormat};
use crate::method::Recovery;
use crate::spec;

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub enum Attribute {
    /// an int
    Int(i64),
    /// a float
    Float(f32),
    /// a string
    String(String),
    /// of a type that no attribute of the operators has
    Other,
}

/// Where attributes come from.
pub trait Attributes {
    /// The attribute `name`, `None` if the node has no such attribute.
    fn get(&self, name: &'static str) -> Option<Attribute>;
}

fn wrong_type(name: &'static str, expected: &str, found: &Attribute) -> CallError {
    CallError::attribute(name, format!("{found:?} is not {expected}"))
}

/// Which channels the rotation pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotary {
    /// j and j + D/2
    Halves,
    /// 2j and 2j + 1
    Interleaved,
}

/// Attributes that both operators share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Hq
    pub query_heads: usize,
    /// Hk, a divisor of Hq
    pub kv_heads: usize,
    /// T_k, at least 1
    pub kept_channels: usize,
    /// How rows are laid out.
    pub row_format: RowFormat,
    /// Bits of a kept key channel; without meaning where there are planes.
    pub key_bits: Bits,
    /// The planes of key rows of format 3.
    pub planes: Option<Planes>,
    /// Bits of a value channel.
    pub value_bits: Bits,
    /// Bytes of a key row, 0: as needed.
    pub key_row_bytes: usize,
    /// Bytes of a value row, 0: as needed.
    pub value_row_bytes: usize,
    /// What pruned channels read as.
    pub recovery: Recovery,
    /// Keys kept dense beside the rows, when wired.
    pub recent_window: usize,
    /// Keys kept dense in the tail of a shared buffer; 0: none.
    pub tail_window: usize,
    /// Rotation to apply to query and key.
    pub rotary: Option<Rotary>,
}

/// Attributes of `SparkPrune`.
#[derive(Clone, Debug, PartialEq)]
pub struct PruneSettings {
    /// The shared ones.
    pub common: Settings,
    /// W, queries that saliency looks at, at least 1.
    pub observation_window: usize,
    /// Factor of the scores that weigh keys for covariances; `None`: 1/sqrt(D).
    pub observation_scale: Option<f32>,
}

/// Attributes of `SparkAttention`.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionSettings {
    /// The shared ones.
    pub common: Settings,
    /// Factor of the scores; `None` means 1/sqrt(D).
    pub scale: Option<f32>,
    /// Limit of the scores, positive.
    pub softcap: Option<f32>,
    /// Keys that a query sees, itself included.
    pub window: Option<usize>,
    /// Whether a query sees only keys up to its own.
    pub causal: bool,
}

/// The attributes of one node, read by their schema.
struct Node<'s, S> {
    source: &'s S,
    version: i64,
}

impl<'s, S: Attributes> Node<'s, S> {
    /// Checks what the node itself says of its version.
    fn new(source: &'s S) -> Result<Self, CallError> {
        let node = Self { source, version: *spec::VERSIONS.start() };
        let version = node.any_int(&spec::VERSION)?;
        spec::check_version(version).map_err(|problem| CallError::attribute(spec::VERSION.name, problem))?;
        Ok(Self { source, version })
    }

    /// The attribute, `None` if the node lacks it.
    fn get(&self, attribute: &spec::Attribute) -> Result<Option<Attribute>, CallError> {
        let found = self.source.get(attribute.name);
        if found.is_some() && attribute.since > self.version {
            return Err(CallError::attribute(attribute.name, self.too_early(attribute.since)));
        }
        Ok(found)
    }

    /// The problem of what a node has that only versions from `since` on know.
    fn too_early(&self, since: i64) -> String {
        let (own, domain, version) = (self.version, spec::DOMAIN, spec::VERSION.name);
        format!(
            "belongs to version {since} of {domain}, but the node is of version {own}: set its attribute \
             `{version}`, and import that version"
        )
    }

    /// An int attribute, whatever its value.
    fn any_int(&self, attribute: &spec::Attribute) -> Result<i64, CallError> {
        let spec::Value::Int { default, .. } = attribute.value else { unreachable!("{} is no int", attribute.name) };
        match self.get(attribute)? {
            Some(Attribute::Int(value)) => Ok(value),
            Some(other) => Err(wrong_type(attribute.name, "an int", &other)),
            None => default.ok_or_else(|| CallError::attribute(attribute.name, "is required")),
        }
    }

    /// An int attribute in its range.
    fn int(&self, attribute: &spec::Attribute) -> Result<i64, CallError> {
        let spec::Value::Int { range, expected, .. } = attribute.value else {
            unreachable!("{} is no int", attribute.name)
        };
        let value = self.any_int(attribute)?;
        match range.contains(value) {
            true => Ok(value),
            false => Err(CallError::attribute(attribute.name, format!("{value} is not {expected}"))),
        }
    }

    /// An int attribute whose range is of sizes.
    fn size(&self, attribute: &spec::Attribute) -> Result<usize, CallError> {
        let value = self.int(attribute)?;
        usize::try_from(value).map_err(|_| CallError::attribute(attribute.name, format!("{value} is negative")))
    }

    fn flag(&self, attribute: &spec::Attribute) -> Result<bool, CallError> {
        self.int(attribute).map(|value| value == 1)
    }

    fn bits(&self, attribute: &spec::Attribute) -> Result<Bits, CallError> {
        let value = self.int(attribute)?;
        Bits::new(value).ok_or_else(|| CallError::attribute(attribute.name, format!("{value} is no number of bits")))
    }

    fn float(&self, attribute: &spec::Attribute) -> Result<f32, CallError> {
        let spec::Value::Float { default } = attribute.value else { unreachable!("{} is no float", attribute.name) };
        match self.get(attribute)? {
            None => Ok(default),
            Some(Attribute::Float(x)) if x.is_finite() => Ok(x),
            Some(other) => Err(wrong_type(attribute.name, "a finite float", &other)),
        }
    }

    fn recovery(&self) -> Result<Recovery, CallError> {
        let spec::Value::String { default, one_of } = spec::RECOVERY.value else { unreachable!("a string") };
        let name = match self.get(&spec::RECOVERY)? {
            None => default.to_owned(),
            Some(Attribute::String(name)) => name,
            Some(other) => return Err(wrong_type(spec::RECOVERY.name, &quoted(one_of), &other)),
        };
        let recovery = Recovery::named(&name)
            .ok_or_else(|| wrong_type(spec::RECOVERY.name, &quoted(one_of), &Attribute::String(name.clone())))?;
        if recovery.is_sampled() && self.version < spec::SAMPLED_RECOVERY_SINCE {
            let problem = format!("{name:?} {}", self.too_early(spec::SAMPLED_RECOVERY_SINCE));
            return Err(CallError::attribute(spec::RECOVERY.name, problem));
        }
        Ok(recovery)
    }

    fn row_format(&self) -> Result<RowFormat, CallError> {
        let format = self.any_int(&spec::ROW_FORMAT)?;
        if let Some(known) = RowFormat::new(format).filter(|_| spec::ROW_FORMATS.contains(&format)) {
            return Ok(known);
        }
        let problem =
            format!("{format} is not one that this library knows ({:?}); {}", spec::ROW_FORMATS, spec::update_hint());
        Err(CallError::attribute(spec::ROW_FORMAT.name, problem))
    }
}

impl<S: Attributes> Node<'_, S> {
    /// The planes of key rows of `format`, if these have any.
    fn planes(&self, format: RowFormat, kept: usize, recovery: Recovery) -> Result<Option<Planes>, CallError> {
        let attributes = [&spec::KEY_DIRECTIONS_8, &spec::KEY_DIRECTIONS_4];
        if format != RowFormat::V3 {
            for attribute in attributes {
                if self.get(attribute)?.is_some() {
                    return Err(CallError::attribute(attribute.name, "belongs to row_format 3; leave it out"));
                }
            }
            return Ok(None);
        }
        if recovery != Recovery::None {
            let problem = format!("{:?}: row_format 3 has nothing to recover by; say \"none\"", recovery.name());
            return Err(CallError::attribute(spec::RECOVERY.name, problem));
        }
        let [eight, four] = [self.size(attributes[0])?, self.size(attributes[1])?];
        // Both are below 2^31.
        match kept.checked_sub(eight + four) {
            Some(two) => Ok(Some(Planes { eight, four, two })),
            None => {
                let problem = format!("{eight} of 8 bits and {four} of 4 are more than kept_channels = {kept}");
                Err(CallError::attribute(spec::KEY_DIRECTIONS_8.name, problem))
            }
        }
    }
}

/// The values of a string attribute, for errors: "mean" or "none" or so.
fn quoted(values: &[&str]) -> String {
    values.iter().map(|v| format!("{v:?}")).collect::<Vec<_>>().join(" or ")
}

impl Settings {
    /// Reads and checks the shared attributes.
    ///
    /// # Errors
    /// Names the attribute that is missing, of another type or out of range.
    pub fn read(source: &impl Attributes) -> Result<Self, CallError> {
        let node = Node::new(source)?;
        let row_format = node.row_format()?;
        let (query_heads, kv_heads) = (node.size(&spec::NUM_HEADS)?, node.size(&spec::KV_NUM_HEADS)?);
        if !query_heads.is_multiple_of(kv_heads) {
            let problem = format!("{query_heads} query heads cannot be shared evenly by kv_num_heads = {kv_heads}");
            return Err(CallError::attribute(spec::NUM_HEADS.name, problem));
        }
        let interleaved = node.flag(&spec::ROTARY_INTERLEAVED)?;
        let style = if interleaved { Rotary::Interleaved } else { Rotary::Halves };
        let (kept_channels, recovery) = (node.size(&spec::KEPT_CHANNELS)?, node.recovery()?);
        Ok(Self {
            query_heads,
            kv_heads,
            kept_channels,
            row_format,
            key_bits: node.bits(&spec::KEY_BITS)?,
            planes: node.planes(row_format, kept_channels, recovery)?,
            value_bits: node.bits(&spec::VALUE_BITS)?,
            key_row_bytes: node.size(&spec::KEY_ROW_BYTES)?,
            value_row_bytes: node.size(&spec::VALUE_ROW_BYTES)?,
            recovery,
            recent_window: node.size(&spec::RECENT_WINDOW)?,
            tail_window: node.size(&spec::TAIL_WINDOW)?,
            rotary: node.flag(&spec::DO_ROTARY)?.then_some(style),
        })
    }
}

impl Settings {
    /// The layout of key rows, of heads of `head_dim` channels.
    ///
    /// # Errors
    /// There is none with these attributes.
    pub fn key_layout(&self, head_dim: usize) -> Result<KeyLayout, LayoutError> {
        match self.planes {
            Some(planes) => KeyLayout::of_planes(head_dim, planes, self.key_row_bytes),
            None => KeyLayout::of(self.row_format, head_dim, self.kept_channels, self.key_bits, self.key_row_bytes),
        }
    }
}

/// `error` as an error about the attribute it speaks of; `row_bytes` names the attribute with the row size at hand.
pub(super) fn layout_error(error: LayoutError, row_bytes: &'static str) -> CallError {
    match error {
        LayoutError::HeadDim(_) => super::Input::Query.error(error.to_string()),
        LayoutError::Planes => CallError::attribute("row_format", error.to_string()),
        LayoutError::KeptChannels { .. } => CallError::attribute("kept_channels", error.to_string()),
        LayoutError::ValueGroup(_) => CallError::attribute("value_bits", error.to_string()),
        LayoutError::RowBytes { .. } => CallError::attribute(row_bytes, error.to_string()),
    }
}

impl PruneSettings {
    /// Reads and checks the attributes of `SparkPrune`.
    ///
    /// # Errors
    /// Names the attribute that is missing, of another type or out of range.
    pub fn read(source: &impl Attributes) -> Result<Self, CallError> {
        let node = Node::new(source)?;
        Ok(Self {
            common: Settings::read(source)?,
            observation_window: node.size(&spec::OBSERVATION_WINDOW)?,
            observation_scale: Some(node.float(&spec::OBSERVATION_SCALE)?).filter(|&s| s != 0.0),
        })
    }
}

impl AttentionSettings {
    /// Reads and checks the attributes of `SparkAttention`.
    ///
    /// # Errors
    /// Names the attribute that is missing, of another type or out of range.
    pub fn read(source: &impl Attributes) -> Result<Self, CallError> {
        let node = Node::new(source)?;
        Ok(Self {
            common: Settings::read(source)?,
            scale: Some(node.float(&spec::SCALE)?).filter(|&s| s != 0.0),
            softcap: Some(node.float(&spec::SOFTCAP)?).filter(|&s| s > 0.0),
            window: usize::try_from(node.int(&spec::LOCAL_WINDOW_SIZE)?).ok().filter(|&w| w > 0),
            causal: node.flag(&spec::CAUSAL)?,
        })
    }
}
