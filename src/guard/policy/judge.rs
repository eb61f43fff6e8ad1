//! A request that is being judged, and what all kinds of requests have in common.

use serde_json::{Map, Value, json};

use crate::guard::refusal::Refusal;

use super::{
    body::needs::Needs,
    context::PolicyContext,
    forward::{Call, FollowUp, Forward, NameFilter, SentBody, Verdict},
    query::{
        self,
        Param::{self, Word},
    },
    route::route,
};

pub(super) struct Judge<'a> {
    pub(super) call: &'a Call<'a>,
    pub(super) context: &'a PolicyContext,
}

pub(super) type Judgement = Result<Verdict, Refusal>;

impl Judge<'_> {
    pub(super) fn query(
        &self,
        allowed: &[(&str, Param)],
    ) -> Result<Vec<(String, String)>, Refusal> {
        query::judge(&self.call.target.query, allowed)
    }

    pub(super) fn raw(&self, name: &str) -> &str {
        let found = self.call.target.query.iter().find(|(known, _)| known == name);
        found.map_or("", |(_, value)| value)
    }

    /// Builds one that has no body, and whose answer is passed on.
    pub(super) fn forward(&self, path: String, query: Vec<(String, String)>) -> Forward {
        Forward {
            method: self.call.method.clone(),
            path,
            query,
            body: SentBody::Nothing,
            auth: None,
            registries: None,
            image: None,
            new_tags: Vec::new(),
            held: Vec::new(),
            needs: Needs::default(),
            names: NameFilter::default(),
            follow_up: FollowUp::Pass,
        }
    }

    pub(super) fn unknown(&self) -> Refusal {
        let method = self.call.method;
        Refusal::denied(&format!("{method} {}", route(self.call.target)), "G-1")
    }

    /// Filters with the job's label added.
    pub(super) fn own_only(&self, mut filters: Map<String, Value>) -> String {
        // All labels: a container that another job made of this job's image has the identity, too.
        let own = self.context.settings.all_labels();
        let labels = filters.entry("label").or_insert_with(|| json!([]));
        if let Value::Array(labels) = labels {
            labels.extend(own.iter().map(|(key, value)| json!(format!("{key}={value}"))));
        }
        Value::Object(filters).to_string()
    }

    pub(super) fn prune(&self, kind: &str, list: &'static str) -> Judgement {
        self.query(&[("filters", Word)])?;
        let filters = query::filters(self.raw("filters"), &["until", "label", "label!"])?;
        let query = vec![("filters".to_owned(), self.own_only(filters))];
        let forward = self.forward(format!("/{kind}/prune"), query);
        Ok(send(Forward { follow_up: FollowUp::Pruned(list), ..forward }))
    }
}

pub(super) fn send(forward: Forward) -> Verdict {
    Verdict::Forward(Box::new(forward))
}

/// Takes the filters out that are about names.
pub(super) fn names_of(filters: &mut Map<String, Value>) -> NameFilter {
    let mut taken = |name: &str| match filters.remove(name) {
        Some(Value::Array(values)) => {
            values.iter().filter_map(Value::as_str).map(str::to_owned).collect()
        }
        _ => Vec::new(),
    };
    NameFilter { patterns: taken("name"), references: taken("reference"), limit: None }
}
