//! An object of a recipe's file, read so that a field that is there twice is noticed: a map of serde_json keeps the
//! last.

use std::fmt;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

/// The fields of an object.
pub struct Entry {
    /// Each once.
    pub fields: Map<String, Value>,
    /// The first that is there again.
    pub twice: Option<String>,
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Fields)
    }
}

impl Serialize for Entry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.fields.serialize(serializer)
    }
}

struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = Entry;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with the fields of a layer")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entry, A::Error> {
        let mut entry = Entry { fields: Map::new(), twice: None };
        while let Some((name, value)) = map.next_entry::<String, Value>()? {
            if entry.fields.insert(name.clone(), value).is_some() {
                entry.twice.get_or_insert(name);
            }
        }
        Ok(entry)
    }
}
