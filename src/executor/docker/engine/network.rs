//! What the engine's networks are like, as far as a job's daemon must know.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use bollard::{Docker, query_parameters::InspectNetworkOptions};
use tokio::sync::OnceCell;

use super::Error;
use crate::base::error_chain;

/// The MTU in a network's options (moby, `libnetwork/netlabel`: `DriverMTU`).
const MTU: &str = "com.docker.network.driver.mtu";

/// MTUs of networks that were asked for.
#[derive(Default)]
pub(super) struct NetworkMtus {
    known: Mutex<HashMap<String, Arc<OnceCell<Option<u32>>>>>,
}

impl NetworkMtus {
    /// The MTU of a network, if it says one. An engine is asked once for each; a failure is nobody's
    /// concern here, as the network's user will meet it too.
    pub(super) async fn of(&self, client: &Docker, network: &str) -> Option<u32> {
        let cell = {
            let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(known.entry(network.to_owned()).or_default())
        };
        let ask = async || {
            let options = None::<InspectNetworkOptions>;
            let inspected = client.inspect_network(network, options).await;
            let inspected = inspected.map_err(Error::of("inspect the network", network))?;
            Ok::<_, Error>(inspected.options.and_then(|o| o.get(MTU)?.parse().ok()))
        };
        match cell.get_or_try_init(ask).await {
            Ok(mtu) => *mtu,
            Err(error) => {
                tracing::debug!(error = %error_chain(&error), "the network's MTU is not known");
                None
            }
        }
    }
}
