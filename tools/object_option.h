// "--object" for commands whose options CLI11 reads.
//
// Thread safety: functions without state.
#ifndef SPINDLE_TOOLS_OBJECT_OPTION_H_
#define SPINDLE_TOOLS_OBJECT_OPTION_H_

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace spindle {

// Each is a text for SecretStore::add_object().
inline void add_object_option(CLI::App* command,
                              std::vector<std::string>* objects) {
  command
      ->add_option("--object", *objects,
                   "secret,id=ID,data=TEXT|file=NAME|env=NAME"
                   "[,format=raw|base64]: what key-secret=ID refers to")
      ->expected(1)
      ->take_all()
      ->allow_extra_args(false);
}

}  // namespace spindle

#endif  // SPINDLE_TOOLS_OBJECT_OPTION_H_
