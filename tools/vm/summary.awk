# Reads what the guest reported and prints the verdict. Exit code: 0 all passed, 1 a test failed or none ran, 3 the
# report does not reach its end.

function finish(why) {
    # A binary that died or was killed printed no result; it counts as one failure, so that no sum hides it.
    if (why != "" && failed == 0) failed = 1
    printf "%-24s %6d %6d %7d %7d %7s  %s\n", name, passed, failed, ignored, skipped, seconds "s", why
    total_passed += passed; total_failed += failed; total_ignored += ignored; total_skipped += skipped
    name = ""
}

BEGIN {
    name = ""; complete = 0
    printf "%-24s %6s %6s %7s %7s %7s\n", "kernel " kernel, "passed", "failed", "ignored", "skipped", "time"
}

{ sub(/\r$/, "") }

$1 == token && $2 == "boot" { release = $3; next }
$1 == token && $2 == "begin" {
    name = $3; passed = failed = ignored = measured = skipped = 0; planned = -1; seconds = "?"; split("", seen); next
}
$1 == token && $2 == "end" {
    seconds = $5
    why = ""
    if ($4 == "timeout") why = "HUNG, killed"
    else if ($4 > 128) why = "DIED of signal " ($4 - 128)
    else if ($4 != 0 && failed == 0) why = "exit code " $4
    # Leaving in the middle is no success, whatever the exit code.
    if (planned != passed + failed + ignored + measured) {
        passed = ignored = measured = 0; failed = 1
        if (why == "") why = "NO RESULT"
    }
    finish(why); ended++; next
}
$1 == token && $2 == "done" { complete = ($3 == expected && ended == expected); next }

# The first plan and the last result are the binary's own; between them are those of tests that run it again.
/^running [0-9]+ tests?$/ { if (planned < 0) planned = $2 }
/^test result: / {
    passed = failed = ignored = measured = 0
    for (i = 3; i < NF; i++) {
        if ($(i + 1) ~ /^passed/) passed = $i
        if ($(i + 1) ~ /^failed/) failed = $i
        if ($(i + 1) ~ /^ignored/) ignored = $i
        if ($(i + 1) ~ /^measured/) measured = $i
    }
}
/^test .* \.\.\. FAILED$/ { failures[++failure_count] = name ": " $2 }
/SKIP:/ && name != "" {
    text = substr($0, index($0, "SKIP:"))
    if (!(text in seen)) { seen[text] = 1; skipped++; skips[++skip_count] = name ": " text }
}

END {
    if (name != "") { passed = 0; finish("NOT FINISHED") }
    for (i = 1; i <= failure_count; i++) print "failed: " failures[i]
    for (i = 1; i <= skip_count; i++) print "skip: " skips[i]
    if (!complete) {
        print release == "" ? "The machine did not boot." : "The machine (" release ") did not finish."
        if (total_failed == 0) total_failed = 1
    }
    print "vm: " took " s in the machine, " (release == "" ? "no kernel" : release)
    if (complete && total_passed + total_failed == 0) { print "No test ran."; total_failed = 1 }
    printf "vm-%s: %d passed, %d failed, %d skipped\n", kernel, total_passed, total_failed, total_skipped
    if (!complete) exit 3
    if (total_failed) exit 1
}
