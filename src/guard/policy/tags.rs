//! Tags that a job makes (G-61). Pure.

use crate::guard::{
    image::{HELPER_REPOSITORY, PORTABLE_REPOSITORY, Reference},
    refusal::Refusal,
    settings::GuardSettings,
};

/// Whether a job may make this tag (G-61); what remains is whether it exists.
///
/// # Errors
/// When it may not, whether it exists or not.
pub(in crate::guard) fn new_tag(
    reference: &Reference,
    settings: &GuardSettings,
) -> Result<(), Refusal> {
    if reference.digest.is_some() {
        return Err(Refusal::malformed("a tag cannot have a digest", "G-61"));
    }
    // longshore runs the images of these names with more rights than any job has.
    let short = reference.short();
    let own = [HELPER_REPOSITORY, PORTABLE_REPOSITORY];
    if own.iter().any(|own| short.strip_prefix(own).is_some_and(|rest| rest.starts_with(':'))) {
        return Err(Refusal::because(&format!("the tag {short} is the runner's own"), "G-61"));
    }
    if settings.names.are_in(&reference.registry) {
        return Err(Refusal::because("this registry is the guard's own", "G-61"));
    }
    if settings.images.shares(reference) {
        return Err(Refusal::because(
            &format!("the tag {} is shared by jobs and cannot be changed", reference.short()),
            "G-61",
        ));
    }
    Ok(())
}

pub(super) fn bad_reference(text: &str) -> Refusal {
    let text: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
    Refusal { status: 400, message: format!("invalid reference format: {text}"), rule: "G-61" }
}

pub(super) fn tag_query(reference: &Reference) -> Vec<(String, String)> {
    vec![
        ("repo".to_owned(), reference.repository()),
        ("tag".to_owned(), reference.tag.clone().unwrap_or_default()),
    ]
}
