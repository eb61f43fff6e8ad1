//! Removal of what a job made. It carries on past errors, and does not mind what is gone already.

use std::{collections::BTreeMap, time::Duration};

use bollard::query_parameters::{
    ListContainersOptionsBuilder, ListNetworksOptionsBuilder, ListVolumesOptionsBuilder,
    RemoveContainerOptionsBuilder, RemoveVolumeOptions,
};
use futures_util::future;
use tokio::time::sleep;

use crate::{
    base::ids::JobId,
    executor::docker::engine::{Engine, Error},
    ledger::Thing,
    workload::{
        NetworkPlan, Workload,
        mount::LAYERS_TYPE,
        names::{INSTANCE_LABEL, LABEL_PREFIX},
    },
};

use super::spec;

/// How often the removal of something in use is tried, and the pause between two tries: the engine
/// needs a moment to let go of a network or volume after its last container.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(250);

/// Looks for what was made late, and the pause before each.
const LATE_LOOKS: u32 = 3;
const LATE_PAUSE: Duration = Duration::from_millis(500);

/// All that a plan makes, in the ledger's words.
#[must_use]
pub fn things(plan: &Workload) -> Vec<Thing> {
    let services = plan.services.iter().map(|service| service.container.clone());
    let mut things: Vec<Thing> = services
        .chain([plan.names.build.clone(), plan.names.helper.clone()])
        .map(Thing::Container)
        .collect();
    things.extend(plan.access.buildkit().map(|_| Thing::Container(plan.names.buildkit.clone())));
    match &plan.network {
        NetworkPlan::Own { name, .. } => things.push(Thing::Network(name.clone())),
        NetworkPlan::Default | NetworkPlan::Given(_) => {
            // The guard's, for the job's containers.
            let guarded = plan.access.guarded().map(|_| plan.names.network.clone());
            things.extend(guarded.map(Thing::Network));
        }
    }
    things.extend(plan.mounts.temporary().map(|volume| Thing::Volume(volume.name.clone())));
    things
}

/// How containers are removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Anonymous {
    /// Their anonymous volumes go too (`volume_keep` says otherwise).
    pub remove: bool,
}

/// Removes things; gives all that could not be.
pub async fn remove(engine: &Engine, things: &[Thing], anonymous: Anonymous) -> Vec<Error> {
    let mut errors = remove_containers(engine, things, anonymous).await;
    errors.extend(remove_rest(engine, things).await);
    errors
}

/// Removes the containers among things.
pub async fn remove_containers(
    engine: &Engine,
    things: &[Thing],
    anonymous: Anonymous,
) -> Vec<Error> {
    let containers = things.iter().filter_map(|thing| match thing {
        Thing::Container(name) => Some(remove_container(engine, name, anonymous)),
        Thing::Network(_) | Thing::Volume(_) => None,
    });
    future::join_all(containers).await.into_iter().filter_map(Result::err).collect()
}

/// Removes what containers used, once they are gone.
pub async fn remove_rest(engine: &Engine, things: &[Thing]) -> Vec<Error> {
    let rest = things.iter().map(|thing| async move {
        match thing {
            Thing::Container(_) => Ok(()),
            Thing::Network(name) => remove_network(engine, name).await,
            Thing::Volume(name) => remove_volume(engine, name).await,
        }
    });
    future::join_all(rest).await.into_iter().filter_map(Result::err).collect()
}

/// What carries this longshore's mark on the engine, and the job's when one is named: a request
/// that was under way when a job was stopped may have made something after it was removed.
///
/// # Errors
/// When the engine cannot list them.
pub async fn marked(
    engine: &Engine,
    instance: &str,
    job: Option<JobId>,
) -> Result<Vec<Thing>, Error> {
    let job_label = format!("{LABEL_PREFIX}.job.id");
    let reusable_label = format!("{LABEL_PREFIX}.reusable");
    let job = job.map(|job| job.to_string());
    let mut labels = BTreeMap::from([(INSTANCE_LABEL, instance)]);
    if let Some(job) = &job {
        labels.insert(&job_label, job);
    }
    let client = engine.client();
    let filters = spec::label_filter(&labels);
    let containers = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
    let networks = ListNetworksOptionsBuilder::new().filters(&filters).build();
    // Volumes that later jobs use again bear no job's number, and stay.
    labels.insert(&reusable_label, "false");
    let filters = spec::label_filter(&labels);
    let volumes = ListVolumesOptionsBuilder::new().filters(&filters).build();
    let (containers, networks) = future::try_join(
        async {
            client
                .list_containers(Some(containers))
                .await
                .map_err(Error::of("list the containers", ""))
        },
        async {
            client.list_networks(Some(networks)).await.map_err(Error::of("list the networks", ""))
        },
    )
    .await?;
    let mut things: Vec<Thing> =
        containers.into_iter().filter_map(|c| c.id).map(Thing::Container).collect();
    things.extend(networks.into_iter().filter_map(|n| n.id).map(Thing::Network));
    let volumes =
        client.list_volumes(Some(volumes)).await.map_err(Error::of("list the volumes", ""))?;
    let names = volumes.volumes.unwrap_or_default().into_iter().map(|v| v.name);
    things.extend(names.map(Thing::Volume));
    Ok(things)
}

/// Volumes of this longshore's layer-cache slots.
///
/// # Errors
/// When the engine cannot list them.
pub async fn layers(engine: &Engine, instance: &str) -> Result<Vec<String>, Error> {
    let type_label = format!("{LABEL_PREFIX}.type");
    let labels = BTreeMap::from([(INSTANCE_LABEL, instance), (&type_label, LAYERS_TYPE)]);
    let options = ListVolumesOptionsBuilder::new().filters(&spec::label_filter(&labels)).build();
    let listed = engine.client().list_volumes(Some(options)).await;
    let listed = listed.map_err(Error::of("list the volumes", ""))?;
    Ok(listed.volumes.unwrap_or_default().into_iter().map(|volume| volume.name).collect())
}

/// Removes what requests that were under way when a job was stopped, or its longshore died, have made
/// since: they are the engine's to finish, and it does so in its own time.
pub async fn remove_late(
    engine: &Engine,
    instance: &str,
    job: JobId,
    anonymous: Anonymous,
) -> Vec<Error> {
    let mut errors = Vec::new();
    for _ in 0..LATE_LOOKS {
        sleep(LATE_PAUSE).await;
        match marked(engine, instance, Some(job)).await {
            Ok(late) => errors.extend(remove(engine, &late, anonymous).await),
            Err(error) => errors.push(error),
        }
    }
    errors
}

async fn remove_container(engine: &Engine, name: &str, anonymous: Anonymous) -> Result<(), Error> {
    until_free(|| async {
        let options = RemoveContainerOptionsBuilder::new().force(true).v(anonymous.remove).build();
        engine
            .client()
            .remove_container(name, Some(options))
            .await
            .map_err(Error::of("remove the container", name))
    })
    .await
}

async fn remove_network(engine: &Engine, name: &str) -> Result<(), Error> {
    until_free(|| async {
        engine.client().remove_network(name).await.map_err(Error::of("remove the network", name))
    })
    .await
}

async fn remove_volume(engine: &Engine, name: &str) -> Result<(), Error> {
    until_free(|| async {
        engine
            .client()
            .remove_volume(name, None::<RemoveVolumeOptions>)
            .await
            .map_err(Error::of("remove the volume", name))
    })
    .await
}

/// Removes something that may be gone already, or in use for a moment more.
async fn until_free<F, R>(attempt: F) -> Result<(), Error>
where
    F: Fn() -> R,
    R: Future<Output = Result<(), Error>>,
{
    let mut tries = 1;
    loop {
        match attempt().await {
            Ok(()) => return Ok(()),
            Err(error) if error.is_not_found() => return Ok(()),
            Err(error) => {
                let busy = error.is_conflict() || matches!(error.status(), Some(403 | 500));
                if !busy || tries == TRIES {
                    return Err(error);
                }
                tries += 1;
                sleep(PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::workload::testing::Case;

    fn case() -> Case {
        Case::new()
            .with("services", json!([{"name": "redis"}, {"name": "redis"}, {"name": "postgres"}]))
            .docker(r#"volumes = ["/keep", "/host:/dst"]"#)
    }

    #[test]
    fn docker_110_115_a_job_removes_its_containers_its_network_and_what_is_temporary() {
        let case =
            case().variable("FF_NETWORK_PER_BUILD", "true").variable("GIT_STRATEGY", "clone");
        let unique = "runner-abcdefghi-project-42-concurrent-1-00112233445566aa";
        let container = |name: &str| Thing::Container(format!("{unique}-{name}"));
        let builds = "c33bcaa1fd2c77edfc3893b41966cea8";
        assert_eq!(
            things(&case.plan()),
            [
                container("redis-0"),
                container("postgres-2"),
                container("build"),
                container("predefined"),
                Thing::Network("runner-abcdefghi-42-1-88213".to_owned()),
                Thing::Volume(format!("{unique}-cache-{builds}")),
            ]
        );
    }

    #[test]
    fn a_jobs_buildkit_goes_with_its_state_and_its_socket() {
        let with = |build: &str| {
            let socket =
                format!("[runners.docker.socket]\nmode = \"guarded\"\nbuild = \"{build}\"");
            things(&Case::new().docker(&socket).plan())
        };
        let (with, without) = (with("sidecar"), with("classic"));
        let more: Vec<&Thing> = with.iter().filter(|thing| !without.contains(thing)).collect();
        assert!(
            matches!(more[..], [Thing::Container(name), Thing::Volume(_), Thing::Volume(_)]
                if name.ends_with("-buildkit")),
            "{more:?}"
        );
    }

    #[test]
    fn docker_119_what_the_job_did_not_make_is_not_removed() {
        for mode in ["", "network_mode = \"ours\"", "network_mode = \"host\""] {
            let plan = case().docker(mode).variable("FF_NETWORK_PER_BUILD", "false").plan();
            let others = things(&plan)
                .into_iter()
                .filter(|thing| !matches!(thing, Thing::Container(_)))
                .collect::<Vec<_>>();
            assert_eq!(others, [], "{mode}");
        }
    }

    #[test]
    fn docker_106_all_volumes_go_where_caches_are_disabled() {
        let plan = case().docker("disable_cache = true").plan();
        let volumes =
            things(&plan).into_iter().filter(|thing| matches!(thing, Thing::Volume(_))).count();
        assert_eq!((volumes, plan.mounts.volumes.len()), (2, 2));
    }
}
