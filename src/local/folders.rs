//! The folders of the jobs' artifacts.

/// Names of folders that are close to the jobs' names, safe and different.
pub(crate) fn folders(names: &[String]) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for name in names {
        let safe = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
        let mut folder = String::new();
        for c in name.chars().take(100) {
            if safe(c) {
                folder.push(c);
            } else if !folder.ends_with('-') {
                folder.push('-');
            }
        }
        let folder = folder.trim_matches(['-', '.']);
        let folder = if folder.is_empty() { "job" } else { folder };
        let mut unique = folder.to_owned();
        let mut number = 2;
        while out.contains(&unique) {
            unique = format!("{folder}-{number}");
            number += 1;
        }
        out.push(unique);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_stay_inside_and_differ() {
        let names = ["build", "test: [linux, 1.2]", "test 1/2", "../..", "a/b", "a b", "..."];
        assert_eq!(
            folders(&names.map(str::to_owned)),
            ["build", "test-linux-1.2", "test-1-2", "job", "a-b", "a-b-2", "job-2"]
        );
    }
}
