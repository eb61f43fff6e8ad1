//! Images, and what makes them: builds, commits and imports (5.4, 5.7, sections 10 and 11).

use hyper::Method;
use serde_json::{Value, json};

use super::{
    Decision, Filter, Forward, ImageUse, Judge, Reply, Sent, Then, Verdict, bad_reference,
    names_of, new_tag,
    query::{
        self,
        Param::{self, Drop as Ignored, Flag, Many, Number, Word},
    },
    send,
};
use crate::guard::{Refusal, body, buildkit, dockerfile, image::Reference, settings::Build};

impl Judge<'_> {
    pub(super) fn images(&self, segments: &[&str]) -> Decision {
        match (self.call.method, segments) {
            (&Method::GET, ["json"]) => self.image_list(),
            (&Method::GET, ["get"]) => {
                let names = self.query(&[("names", Many), ("platform", Ignored)])?;
                // Several are not resolved at once; the CLI names one or many.
                let [(_, name)] = &names[..] else {
                    return Err(Refusal::denied("saving several images in one request", "G-60"));
                };
                let mut forward = self.forward("/images/{image}/get".to_owned(), Vec::new());
                forward.image = Some((name.clone(), ImageUse::Name));
                Ok(send(forward))
            }
            (&Method::POST, ["create"]) => self.image_create(),
            (&Method::POST, ["load"]) => {
                let query = self.query(&[("quiet", Flag), ("platform", Word)])?;
                let forward = self.forward("/images/load".to_owned(), query);
                Ok(send(Forward { body: Sent::Images, then: Then::Loaded, ..forward }))
            }
            (&Method::POST, ["prune"]) => Ok(Verdict::Answer(Reply::Json(
                json!({ "ImagesDeleted": null, "SpaceReclaimed": 0 }),
            ))),
            (&Method::GET, [name @ .., action @ ("json" | "history" | "get")])
                if !name.is_empty() =>
            {
                let query = self.query(&[("platform", Word), ("manifests", Flag)])?;
                let mut forward = self.forward(format!("/images/{{image}}/{action}"), query);
                let how = if *action == "get" { ImageUse::Name } else { ImageUse::Id };
                forward.image = Some((name.join("/"), how));
                forward.then = match *action {
                    "json" => Then::Filter(Filter::Image),
                    "history" => Then::Filter(Filter::History),
                    _ => Then::Pass,
                };
                Ok(send(forward))
            }
            (&Method::POST, [name @ .., "tag"]) if !name.is_empty() => {
                self.query(&[("repo", Word), ("tag", Word), ("force", Ignored)])?;
                let reference = self.named_tag()?.ok_or_else(|| bad_reference(""))?;
                let mut forward =
                    self.forward("/images/{image}/tag".to_owned(), tag_query(&reference));
                forward.image = Some((name.join("/"), ImageUse::Id));
                forward.new_tags = vec![reference.clone()];
                forward.then = Then::Tagged(reference);
                Ok(send(forward))
            }
            (&Method::POST, [name @ .., "push"]) if !name.is_empty() => self.push(&name.join("/")),
            (&Method::DELETE, name) if !name.is_empty() => {
                // With `noprune`, which compose sets, layers without a name or a label would be left,
                // and nothing of the job leads to them any more.
                let query = self.query(&[("force", Flag), ("noprune", Ignored)])?;
                let mut forward = self.forward("/images/{image}".to_owned(), query);
                forward.image = Some((name.join("/"), ImageUse::Remove));
                Ok(send(forward))
            }
            _ => Err(self.unknown()),
        }
    }

    /// The tag in `repo` and `tag`, when one is named and may be made.
    fn named_tag(&self) -> Result<Option<Reference>, Refusal> {
        let (repository, tag) = (self.raw("repo"), self.raw("tag"));
        if repository.is_empty() {
            return if tag.is_empty() { Ok(None) } else { Err(bad_reference(tag)) };
        }
        let reference =
            Reference::of_parts(repository, tag).ok_or_else(|| bad_reference(repository))?;
        new_tag(&reference, &self.world.settings)?;
        Ok(Some(reference))
    }

    fn image_list(&self) -> Decision {
        let mut query = self.query(&[
            ("all", Flag),
            ("filters", Word),
            ("filter", Ignored),
            ("digests", Flag),
            ("shared-size", Ignored),
            ("manifests", Flag),
        ])?;
        query.retain(|(name, _)| name != "filters");
        let mut filters =
            query::filters(self.raw("filters"), &["dangling", "label", "reference", "until"])?;
        let names = names_of(&mut filters);
        if !filters.is_empty() {
            query.push(("filters".to_owned(), Value::Object(filters).to_string()));
        }
        let forward = self.forward("/images/json".to_owned(), query);
        Ok(send(Forward { names, then: Then::Filter(Filter::Images), ..forward }))
    }

    fn image_create(&self) -> Decision {
        let most = self.world.settings.limits.images;
        if self.world.owned.image_count() >= most {
            return Err(body::limit("images", most));
        }
        let (image, source) = (self.raw("fromImage"), self.raw("fromSrc"));
        if !image.is_empty() && source.is_empty() {
            self.query(&[
                ("fromImage", Word),
                ("tag", Word),
                ("platform", Word),
                ("repo", Ignored),
                ("fromSrc", Ignored),
                ("message", Ignored),
            ])?;
            let reference =
                Reference::of_parts(image, self.raw("tag")).ok_or_else(|| bad_reference(image))?;
            reference.may_ask(&self.world.settings.images)?;
            let tag =
                reference.digest.clone().or_else(|| reference.tag.clone()).unwrap_or_default();
            let mut query =
                vec![("fromImage".to_owned(), reference.repository()), ("tag".to_owned(), tag)];
            if !self.raw("platform").is_empty() {
                query.push(("platform".to_owned(), self.raw("platform").to_owned()));
            }
            let forward = self.forward("/images/create".to_owned(), query);
            let auth = self.call.auth.clone();
            return Ok(send(Forward { auth, then: Then::Pulled(reference), ..forward }));
        }
        if source != "-" || !image.is_empty() {
            return Err(Refusal::denied("an import from an address", "G-1"));
        }
        let mut query = self.query(&[
            ("fromSrc", Word),
            ("repo", Ignored),
            ("tag", Ignored),
            ("message", Word),
            ("changes", Many),
            ("platform", Word),
        ])?;
        let reference = self.named_tag()?;
        self.changes(&mut query)?;
        query.extend(reference.iter().flat_map(tag_query));
        let forward = self.forward("/images/create".to_owned(), query);
        Ok(send(Forward {
            body: Sent::Archive,
            new_tags: reference.iter().cloned().collect(),
            then: Then::Made(reference),
            ..forward
        }))
    }

    /// Judges `changes`, and adds the job's labels (G-63).
    fn changes(&self, query: &mut Vec<(String, String)>) -> Result<(), Refusal> {
        for (_, change) in query.iter().filter(|(name, _)| name == "changes") {
            dockerfile::change(change, &self.world.settings)?;
        }
        for (key, value) in self.world.settings.image_labels() {
            let line = format!("LABEL {}={}", Value::from(key), Value::from(value));
            query.push(("changes".to_owned(), line));
        }
        Ok(())
    }

    fn push(&self, name: &str) -> Decision {
        self.query(&[("tag", Word), ("platform", Word)])?;
        let reference =
            Reference::of_parts(name, self.raw("tag")).ok_or_else(|| bad_reference(name))?;
        let missing =
            || Refusal::missing(format!("An image does not exist locally with the tag: {name}"));
        if !self.world.owned.tag(&reference.canonical()).ok_or_else(missing)?.made {
            return Err(Refusal::because("only tags that this job made can be pushed", "G-65"));
        }
        reference.may_ask(&self.world.settings.images)?;
        let query = vec![("tag".to_owned(), reference.tag.clone().unwrap_or_default())];
        let forward = self.forward(format!("/images/{}/push", reference.repository()), query);
        let auth = self.call.auth.clone();
        Ok(send(Forward { auth, then: Then::Pushed(reference), ..forward }))
    }

    pub(super) fn commit(&self) -> Decision {
        let mut query = self.query(&[
            ("container", Word),
            ("repo", Ignored),
            ("tag", Ignored),
            ("comment", Word),
            ("author", Word),
            ("pause", Flag),
            ("changes", Many),
        ])?;
        let (id, _) = self.world.owned.own_container(self.raw("container"))?;
        query.retain(|(name, _)| name != "container");
        query.push(("container".to_owned(), id.to_owned()));
        let reference = self.named_tag()?;
        self.changes(&mut query)?;
        query.extend(reference.iter().flat_map(tag_query));
        let forward = self.forward("/commit".to_owned(), query);
        Ok(send(Forward {
            body: Sent::Json(body::commit(self.call.body, self.world)?),
            new_tags: reference.iter().cloned().collect(),
            then: Then::Made(reference),
            ..forward
        }))
    }

    pub(super) fn build(&self) -> Decision {
        let offered = self.world.settings.build;
        if offered == Build::Off {
            return Err(buildkit::off());
        }
        if !["", "1"].contains(&self.raw("version")) || !self.raw("session").is_empty() {
            return Err(buildkit::in_the_engine(offered));
        }
        let mut query = self.query(&[
            ("t", Many),
            ("dockerfile", Word),
            ("buildargs", Word),
            ("labels", Word),
            ("target", Word),
            ("q", Flag),
            ("nocache", Flag),
            ("pull", Flag),
            ("platform", Word),
            ("memory", Number),
            ("memswap", Number),
            ("cpuquota", Number),
            ("cpuperiod", Number),
            ("cpushares", Number),
            ("extrahosts", Many),
            ("networkmode", Word),
            ("cachefrom", Word),
            ("rm", Ignored),
            ("forcerm", Ignored),
            ("version", Ignored),
            ("shmsize", Ignored),
            ("ulimits", Ignored),
            ("buildid", Ignored),
            ("remote", Param::Empty),
            ("session", Param::Empty),
            ("outputs", Param::Empty),
            ("cgroupparent", Param::Empty),
            ("squash", Param::Empty),
            ("isolation", Param::Empty),
            ("securityopt", Param::Empty),
            ("cpusetcpus", Param::Empty),
            ("cpusetmems", Param::Empty),
        ])?;
        let mut tags = Vec::new();
        // The guard itself tags what was built.
        for (_, tag) in query.extract_if(.., |(name, _)| name == "t") {
            let reference = Reference::parse(&tag).ok_or_else(|| bad_reference(&tag))?;
            new_tag(&reference, &self.world.settings)?;
            tags.push(reference);
        }
        query::build(&mut query, self.world, |name| self.raw(name))?;
        let forward = self.forward("/build".to_owned(), query);
        Ok(send(Forward {
            body: Sent::Context,
            registries: self.call.registries.clone(),
            new_tags: tags.clone(),
            then: Then::Built(tags),
            ..forward
        }))
    }
}

fn tag_query(reference: &Reference) -> Vec<(String, String)> {
    vec![
        ("repo".to_owned(), reference.repository()),
        ("tag".to_owned(), reference.tag.clone().unwrap_or_default()),
    ]
}
