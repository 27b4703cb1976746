// What spindle-img says about itself.
//
// Thread safety: one thread.
#ifndef SPINDLE_TOOLS_IMG_HELP_H_
#define SPINDLE_TOOLS_IMG_HELP_H_

namespace spindle {

// The version, in the form in which scripts look for it.
void print_version();
// The version, every command with its options, what these mean, and the formats
// that there are.
void print_help();

}  // namespace spindle

#endif  // SPINDLE_TOOLS_IMG_HELP_H_
