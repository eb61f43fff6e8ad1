//! YAML as Ruby's parser, and so GitLab, reads it where that differs from `serde_yaml`: a key may
//! be there twice, and `<<` is merged where it stands, over what is before it and under what comes
//! after it (Psych: `Psych::Visitors::ToRuby#revive_hash`). Merging while reading also resolves
//! anchors that merge anchors, which `serde_yaml::Value::apply_merge` does not.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{EnumAccess, Error, MapAccess, SeqAccess, VariantAccess, Visitor},
};
use serde_yaml::{
    Mapping, Value,
    value::{Tag, TaggedValue},
};

/// All documents of a text.
pub(crate) fn documents(text: &str) -> Result<Vec<Value>, serde_yaml::Error> {
    serde_yaml::Deserializer::from_str(text)
        .map(|document| Node::deserialize(document).map(|Node(value)| value))
        .collect()
}

struct Node(Value);

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor).map(Node)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a YAML value")
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        while let Some(Node(item)) = items.next_element()? {
            out.push(item);
        }
        Ok(Value::Sequence(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut out = Mapping::new();
        while let Some((Node(key), Node(value))) = entries.next_entry()? {
            if key.as_str() == Some("<<") {
                merge(&mut out, value).map_err(A::Error::custom)?;
            } else {
                out.insert(key, value);
            }
        }
        Ok(Value::Mapping(out))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, tagged: A) -> Result<Value, A::Error> {
        let (tag, content) = tagged.variant::<String>()?;
        let Node(value) = content.newtype_variant()?;
        Ok(Value::Tagged(Box::new(TaggedValue { tag: Tag::new(tag), value })))
    }
}

/// Merges a mapping, or a list of them of which the first wins.
fn merge(out: &mut Mapping, value: Value) -> Result<(), &'static str> {
    match value {
        Value::Mapping(source) => out.extend(source),
        Value::Sequence(sources) => {
            sources.into_iter().rev().try_for_each(|source| match source {
                Value::Mapping(source) => {
                    out.extend(source);
                    Ok(())
                }
                _ => Err("`<<` merges mappings only"),
            })?;
        }
        _ => return Err("`<<` merges mappings only"),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Value {
        documents(text).unwrap().remove(0)
    }

    fn plain(text: &str) -> Value {
        serde_yaml::from_str(text).unwrap()
    }

    #[test]
    fn all_kinds_of_values_are_read_as_serde_yaml_reads_them() {
        let text = "{a: 1, b: -2, c: 1.5, d: yes, e: true, f: ~, g: 'x', h: [1, [2]], 3: z, i: !reference [a, b]}";
        assert_eq!(read(text), plain(text));
        let Value::Tagged(tagged) = &read(text)["i"] else { panic!("the tag is kept") };
        assert!(tagged.tag == "reference");
    }

    #[test]
    fn merge_keys_work_through_several_anchors_and_where_they_stand() {
        let text =
            "a: &a {x: 1, y: 1}\nb: &b {<<: *a, y: 2}\nc: {x: 0, <<: [*b, {y: 9, z: 4}], y: 3}\n";
        assert_eq!(read(text)["c"], plain("{x: 1, y: 3, z: 4}"));
        let twice = "a: &a {x: 1, y: 1}\nb: &b {y: 2}\nc:\n  <<: *a\n  <<: *b\n";
        assert_eq!(read(twice)["c"], plain("{x: 1, y: 2}"));
        assert!(documents("a: {<<: 1}").unwrap_err().to_string().contains("merges mappings only"));
    }

    #[test]
    fn of_a_key_that_is_there_twice_the_last_is_meant() {
        assert_eq!(read("a: &x {y: 1}\na: 2\nb: *x\n"), plain("{a: 2, b: {y: 1}}"));
    }

    #[test]
    fn there_may_be_several_documents_or_none() {
        assert_eq!(documents("a: 1\n---\nb: 2\n").unwrap().len(), 2);
        assert!(documents("# nothing\n").unwrap().iter().all(Value::is_null));
        assert!(documents("a: [").is_err());
    }
}
