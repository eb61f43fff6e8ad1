//! A runner's own life at its server: register, verify, unregister, new tokens.

use reqwest::{Method, header::ACCEPT};
use serde::{Deserialize, Serialize};

use super::{
    client::{Client, JSON},
    error::RequestError,
    info::registration_info,
    transport::Call,
    wire::Info,
};
use crate::base::secret::Secret;

/// What the legacy registration sends (`POST runners`), beside `info`.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Registration {
    /// The registration token.
    #[serde(skip_serializing_if = "Secret::is_empty")]
    pub token: Secret,
    /// Name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub description: String,
    /// For administrators.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub maintenance_note: String,
    /// Tags, separated by commas.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tag_list: String,
    /// Takes jobs without tags; must be true when there are no tags.
    pub run_untagged: bool,
    /// For this project alone.
    pub locked: bool,
    /// `not_protected` or `ref_protected`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub access_level: String,
    /// Seconds; 0 for none.
    #[serde(skip_serializing_if = "is_zero")]
    pub maximum_timeout: u64,
    /// Takes no jobs yet.
    pub paused: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A runner as its server knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct RunnerDetails {
    /// Its number; 0 from a server too old to tell.
    #[serde(default)]
    pub id: i64,
    /// Its authentication token.
    #[serde(default)]
    pub token: Secret,
    /// When the token ends, RFC 3339.
    #[serde(default)]
    pub token_expires_at: Option<String>,
}

/// A new authentication token.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct TokenReply {
    /// The token.
    pub token: Secret,
    /// When it ends, RFC 3339.
    #[serde(default)]
    pub token_expires_at: Option<String>,
}

/// What a server says of a token.
#[derive(Debug)]
pub enum Verification {
    /// Good.
    Valid(RunnerDetails),
    /// Not known: the only answer that means "not valid".
    Invalid(RequestError),
    /// The server did not say; the runner counts as valid (hazard H10).
    Unclear(RequestError),
}

#[derive(Serialize)]
struct Register<'a> {
    #[serde(flatten)]
    registration: &'a Registration,
    info: Info,
}

#[derive(Serialize)]
struct Verify<'a> {
    info: &'a Info,
    token: &'a Secret,
    #[serde(skip_serializing_if = "str::is_empty")]
    system_id: &'a str,
}

#[derive(Serialize)]
struct Unregister<'a> {
    token: &'a Secret,
    #[serde(skip_serializing_if = "Option::is_none")]
    system_id: Option<&'a str>,
}

impl Client {
    /// Registers a runner with a registration token; the client's own token is not used.
    pub async fn register(
        &self,
        registration: &Registration,
    ) -> Result<RunnerDetails, RequestError> {
        let body = Register { registration, info: registration_info() };
        let call = self.json(Method::POST, "runners", &body);
        self.wanted(call.token("runner-token", &registration.token), 201).await
    }

    /// Asks whether the client's token is good, and for whom. An answer without JSON leads to a
    /// second request, which old servers answer with nothing but a status.
    pub async fn verify(&self, info: &Info, system_id: &str) -> Verification {
        let body = Verify { info, token: &self.token, system_id };
        let call = || {
            let call = self.json(Method::POST, "runners/verify", &body);
            call.token("runner-token", &self.token)
        };
        let first = match self.wanted(call(), 200).await {
            Err(RequestError::Transport(_)) => self.status(call(), 200).await,
            Err(error) => Err(error),
            Ok(details) => return Verification::Valid(details),
        };
        match first {
            Ok(()) => Verification::Valid(RunnerDetails::default()),
            Err(error @ RequestError::Forbidden { .. }) => Verification::Invalid(error),
            Err(error) => Verification::Unclear(error),
        }
    }

    /// Removes the runner of the client's (legacy) token.
    pub async fn unregister_runner(&self) -> Result<(), RequestError> {
        let body = Unregister { token: &self.token, system_id: None };
        let call = self.json(Method::DELETE, "runners", &body);
        self.status(call.token("runner-token", &self.token), 204).await
    }

    /// Removes this machine from the runner of the client's token (`glrt-`).
    pub async fn unregister_manager(&self, system_id: &str) -> Result<(), RequestError> {
        let body = Unregister { token: &self.token, system_id: Some(system_id) };
        let call = self.json(Method::DELETE, "runners/managers", &body);
        self.status(call.token("runner-token", &self.token), 204).await
    }

    /// Changes the client's token for a new one; the old one is then void, so make a new client.
    pub async fn reset_token(&self) -> Result<TokenReply, RequestError> {
        let body = Unregister { token: &self.token, system_id: None };
        self.wanted(self.json(Method::POST, "runners/reset_authentication_token", &body), 201).await
    }

    /// The same for the runner with this number, with a personal access token.
    pub async fn reset_token_with_pat(
        &self,
        runner_id: i64,
        pat: &Secret,
    ) -> Result<TokenReply, RequestError> {
        let path = format!("runners/{runner_id}/reset_authentication_token");
        let call = self.json(Method::POST, &path, &());
        self.wanted(call.token("private-token", pat), 201).await
    }

    /// A call whose answer is wanted.
    async fn wanted<T: serde::de::DeserializeOwned>(
        &self,
        call: Call<'_>,
        expected: u16,
    ) -> Result<T, RequestError> {
        let mut answer = self.answer(call.header(ACCEPT, JSON), Some(expected)).await.0?;
        if answer.status == expected {
            let decoded = answer.decode()?;
            self.note_cursor(&answer);
            return Ok(decoded);
        }
        self.note_cursor(&answer);
        Err(refused(answer.status, answer.message()))
    }

    /// A call whose status is enough.
    async fn status(&self, call: Call<'_>, expected: u16) -> Result<(), RequestError> {
        let answer = self.answer(call, None).await.0?;
        self.note_cursor(&answer);
        if answer.status == expected {
            return Ok(());
        }
        Err(refused(answer.status, answer.message()))
    }
}

fn refused(status: u16, message: String) -> RequestError {
    match status {
        403 => RequestError::Forbidden { message },
        status => RequestError::Refused { status, message },
    }
}

#[cfg(test)]
mod tests;
