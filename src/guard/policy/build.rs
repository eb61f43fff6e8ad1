//! Builds by the classic builder (G-70, G-71). Pure.

use serde_json::{Map, Value, json};

use crate::guard::{
    ids::is_id, image::Reference, parse::json as strict, refusal::Refusal, settings::Build,
};

use super::{
    body::fields,
    buildkit,
    context::PolicyContext,
    forward::{FollowUp, Forward, SentBody},
    judge::{Judge, Judgement, send},
    query::Param::{Drop as Ignored, Empty, Flag, Many, Number, Word},
    tags::{bad_reference, new_tag},
};

pub(super) fn build(judge: &Judge<'_>) -> Judgement {
    let offered = judge.context.settings.build;
    if offered == Build::Off {
        return Err(buildkit::off());
    }
    if !["", "1"].contains(&judge.raw("version")) || !judge.raw("session").is_empty() {
        return Err(buildkit::in_the_engine(offered));
    }
    let mut query = judge.query(&[
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
        ("remote", Empty),
        ("session", Empty),
        ("outputs", Empty),
        ("cgroupparent", Empty),
        ("squash", Empty),
        ("isolation", Empty),
        ("securityopt", Empty),
        ("cpusetcpus", Empty),
        ("cpusetmems", Empty),
    ])?;
    let mut tags = Vec::new();
    // The guard itself tags what was built.
    for (_, tag) in query.extract_if(.., |(name, _)| name == "t") {
        let reference = Reference::parse(&tag).ok_or_else(|| bad_reference(&tag))?;
        new_tag(&reference, &judge.context.settings)?;
        tags.push(reference);
    }
    parameters(&mut query, judge.context, |name| judge.raw(name))?;
    let forward = judge.forward("/build".to_owned(), query);
    Ok(send(Forward {
        body: SentBody::Context,
        registries: judge.call.registries.clone(),
        new_tags: tags.clone(),
        follow_up: FollowUp::Built(tags),
        ..forward
    }))
}

/// What the guard sets for a build, and the parameters that are JSON (G-70, G-71).
fn parameters<'a>(
    query: &mut Vec<(String, String)>,
    context: &PolicyContext,
    raw: impl Fn(&str) -> &'a str,
) -> Result<(), Refusal> {
    let (settings, facts) = (&context.settings, &context.facts);
    query.retain(|(name, _)| {
        ![
            "labels",
            "buildargs",
            "cachefrom",
            "networkmode",
            "memory",
            "memswap",
            "cpuquota",
            "cpuperiod",
        ]
        .contains(&&**name)
    });
    let object = |name: &str| strict::object(raw(name).as_bytes());
    let mut labels = Map::new();
    for (key, value) in object("labels")? {
        if settings.is_reserved_label(&key) {
            return Err(Refusal::denied(&format!("the label {key}"), "G-46"));
        }
        labels.insert(key, json!(fields::text(&value, "labels")?));
    }
    labels.extend(settings.image_labels().into_iter().map(|(key, value)| (key, json!(value))));
    query.push(("labels".to_owned(), Value::Object(labels).to_string()));
    let mut arguments = Map::new();
    for (key, value) in object("buildargs")? {
        if !value.is_null() {
            fields::text(&value, "buildargs")?;
        }
        arguments.insert(key, value);
    }
    if !arguments.is_empty() {
        query.push(("buildargs".to_owned(), Value::Object(arguments).to_string()));
    }
    // The engine's own cache holds other jobs' layers: only what this job built is looked at.
    let own: Vec<&str> = context.owned.images.ids().filter(|id| is_id(id)).collect();
    if own.is_empty() {
        query.retain(|(name, _)| name != "nocache");
        query.push(("nocache".to_owned(), "1".to_owned()));
    } else {
        query.push(("cachefrom".to_owned(), json!(own).to_string()));
    }
    let network = match raw("networkmode") {
        "" | "default" | "bridge" => facts.network_id.clone(),
        "none" => "none".to_owned(),
        "host" => return Err(Refusal::denied("networkmode=host", "G-71")),
        name => context.owned.networks.find(name)?.0.to_owned(),
    };
    query.push(("networkmode".to_owned(), network));
    let number = |name: &str| raw(name).parse::<i64>().unwrap_or(0);
    let memory = match number("memory") {
        0 => settings.limits.memory,
        n if (1..=settings.limits.memory).contains(&n) => n,
        _ => return Err(Refusal::denied("the parameter memory (above the limit)", "G-80")),
    };
    query.push(("memory".to_owned(), memory.to_string()));
    let swap = match number("memswap") {
        0 => memory,
        n if (memory..=settings.limits.memory).contains(&n) => n,
        _ => return Err(Refusal::denied("the parameter memswap (above the limit)", "G-80")),
    };
    query.push(("memswap".to_owned(), swap.to_string()));
    let most = match facts.nano_cpus {
        0 => settings.limits.nano_cpus,
        all => all.min(settings.limits.nano_cpus),
    };
    let period = match number("cpuperiod") {
        0 => 100_000,
        n if (1000..=1_000_000).contains(&n) => n,
        _ => return Err(Refusal::denied("the parameter cpuperiod", "G-80")),
    };
    let full =
        i64::try_from(i128::from(most) * i128::from(period) / 1_000_000_000).unwrap_or(i64::MAX);
    let quota = match number("cpuquota") {
        0 => full,
        n if (1..=full).contains(&n) => n,
        _ => return Err(Refusal::denied("the parameter cpuquota (above the limit)", "G-80")),
    };
    query.push(("cpuperiod".to_owned(), period.to_string()));
    query.push(("cpuquota".to_owned(), quota.to_string()));
    if let Some(parent) = &settings.cgroup_parent {
        query.push(("cgroupparent".to_owned(), parent.clone()));
    }
    query.push(("rm".to_owned(), "1".to_owned()));
    query.push(("forcerm".to_owned(), "1".to_owned()));
    Ok(())
}
